"""Entry point: runs a command, turns errors into one line and an exit status.

0 done; 2 the user's input is wrong, one line on stderr; 1 anything else.
"""

import gc
import itertools
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

# What typer makes of a KeyboardInterrupt.
_INTERRUPTED = 130
# Options whose values are files, folders or models.
_NAMED = ("--demonstrations", "--contrasts", "--edit", "--testbed", "--data", "--out", "--model")


def main() -> NoReturn:
    """Run `sea-lens` with the process's arguments."""
    # Set before anything imports transformers or matplotlib: a command prints its own progress and no window opens.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")
    os.environ.setdefault("MPLBACKEND", "Agg")
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows no Greek gets question marks, not a traceback.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    # What has been imported stays until the end: the garbage collector need not look through it again and again.
    gc.freeze()
    from ..errors import SeaLensError
    from .commands import app

    try:
        status = app(standalone_mode=False)
    except SeaLensError as error:
        _fail(naming_the_option(" ".join(str(error).split()), sys.argv), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 1)
    except Exception as error:
        # Errors of the command line itself: typer carries its own copy of click, whose classes these are.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            if not (message := error.format_message()):  # type: ignore[attr-defined]
                sys.exit(2)  # Help was shown.
            _fail(" ".join(message.split()), 2)
        if type(error).__name__ == "Abort":
            _fail("interrupted", 1)
        raise
    if status == _INTERRUPTED:
        _fail("interrupted", 1)
    sys.exit(status if isinstance(status, int) else 0)


def naming_the_option(message: str, arguments: Sequence[str]) -> str:
    """The message, with the option put in front of the file or name in it that was given by that option."""
    for option, value in itertools.pairwise(arguments):
        if option in _NAMED and value and value in message and option not in message:
            return message.replace(value, f"{option} {value}", 1)
    return message


def _fail(message: str, status: int) -> NoReturn:
    print(f"sea-lens: {message}", file=sys.stderr)
    sys.exit(status)
