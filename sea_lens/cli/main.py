"""Entry point: runs a command, turns errors into one line and an exit status.

0 done; 2 the user's input is wrong, one line on stderr; 130 interrupted; 1 anything else.
"""

import errno
import gc
import itertools
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from .._support import interrupts, processes

# Options whose values are files, folders or models.
_NAMED = (
    *("--demonstrations", "--contrasts", "--edit", "--testbed", "--data", "--out", "--model"),
    *("--side-effects", "--held-out", "--control", "--store"),
)


def main() -> NoReturn:
    """Run `sea-lens` with the process's arguments."""
    # Set before anything imports transformers or matplotlib: a command prints its own progress and no window opens.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")
    os.environ.setdefault("MPLBACKEND", "Agg")
    # Streams that the user has closed.
    sys.stdout, sys.stderr = (stream or Path(os.devnull).open("w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows no Greek gets question marks, not a traceback.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    warnings.showwarning = _show_warning
    # What has been imported stays until the end: the garbage collector need not look through it again and again.
    gc.freeze()
    from ..errors import ActivationError, SeaLensError

    try:
        with interrupts.raised():
            processes.start()
            if not processes.is_first():
                sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
            from .commands import app

            _refuse_empty(sys.argv)
            status = app(standalone_mode=False)
            # What the first writes is there before any of them has ended.
            processes.wait()
    except SeaLensError as error:
        # What a model computes is no input of the user's.
        status = 1 if isinstance(error, (ActivationError, processes.LostProcessError)) else 2
        _fail(naming_the_option(" ".join(str(error).split()), sys.argv), status)
    except KeyboardInterrupt:
        _fail("interrupted", interrupts.STATUS)
    except Exception as error:
        # Errors of the command line itself: typer carries its own copy of click, whose classes these are.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            if not (message := error.format_message()):  # type: ignore[attr-defined]
                sys.exit(2)  # Help was shown.
            _fail(" ".join(message.split()), 2)
        if type(error).__name__ == "Abort" or interrupts.has_come():
            _fail("interrupted", interrupts.STATUS)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            _fail_to_print(error)
        raise
    try:
        sys.stdout.flush()
    except OSError as error:
        _fail_to_print(error)
    # What typer makes of a KeyboardInterrupt.
    if status == interrupts.STATUS or interrupts.has_come():
        _fail("interrupted", interrupts.STATUS)
    sys.exit(status if isinstance(status, int) else 0)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse an empty name of a file, as an unset variable of a shell gives it: to a path it is the folder one is in.

    Raises:
        InputError: naming the option.
    """
    from ..errors import InputError

    for option, value in itertools.pairwise([*arguments, "end"]):
        name, equals, given = option.partition("=")
        if name in _NAMED and not (given if equals else value):
            raise InputError(f"{name}: the name is empty")


def naming_the_option(message: str, arguments: Sequence[str]) -> str:
    """The message, with the option put in front of the file or name in it that was given by that option."""
    named: dict[str, list[str]] = {}
    for option, value in itertools.pairwise(arguments):
        if option in _NAMED and value and option not in message:
            named.setdefault(value, []).append(option)
    for value, options in named.items():
        # A word of its own, and one that names a file or begins the message: "e" stands in every sentence.
        where = "^" if not set(value) & {"/", "."} else r"(?<!\S)"
        found = re.search(rf"{where}{re.escape(value)}(?=$|[\s:,;])", message)
        if found is not None:
            return f"{message[: found.start()]}{' or '.join(options)} {message[found.start() :]}"
    return message


def _fail_to_print(error: OSError) -> NoReturn:
    # What cannot be written now is not tried again at the end of the process.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _fail(f"cannot write to the standard output: {error.strerror}", 1)


def _show_warning(message: Warning | str, *_: Any) -> None:
    """A warning as one line, without the place in the code, which says nothing to whoever runs a command."""
    if processes.is_first():
        print(f"sea-lens: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: str, status: int) -> NoReturn:
    # What stops one process of a run stops all, and one says so.
    if processes.is_first():
        print(f"sea-lens: {message}", file=sys.stderr)
    sys.exit(status)
