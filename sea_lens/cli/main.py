"""Entry point: runs a command, turns errors into one line and an exit status.

0 done; 2 the user's input is wrong, one line on stderr; 1 anything else.
"""

import os
import sys
from typing import NoReturn

# What typer makes of a KeyboardInterrupt.
_INTERRUPTED = 130


def main() -> NoReturn:
    """Run `sea-lens` with the process's arguments."""
    # Set before anything imports transformers or matplotlib: a command prints its own progress and no window opens.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("MPLBACKEND", "Agg")
    from ..errors import SeaLensError
    from .commands import app

    try:
        status = app(standalone_mode=False)
    except SeaLensError as error:
        _fail(" ".join(str(error).split()), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 1)
    except Exception as error:
        # Errors of the command line itself: typer carries its own copy of click, whose classes these are.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            _fail(" ".join(error.format_message().split()), 2)  # type: ignore[attr-defined]
        if type(error).__name__ == "Abort":
            _fail("interrupted", 1)
        raise
    if status == _INTERRUPTED:
        _fail("interrupted", 1)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> NoReturn:
    print(f"sea-lens: {message}", file=sys.stderr)
    sys.exit(status)
