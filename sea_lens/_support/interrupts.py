"""One line where a command is interrupted, from its first import on, and nothing left half-written.

Only where the process is `sea-lens` itself: a program that uses the package has its own ways.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STATUS = 130
_LINE = b"sea-lens: interrupted\n"
# Seconds that a command has to clean up, and a library that swallows the interrupt to come back.
_PATIENCE = 5.0
_SHOW_CURSOR = b"\x1b[?25h"
_came = False


def is_command() -> bool:
    """Whether this process was started as `sea-lens` or as `python -m sea_lens`."""
    script = sys.argv[0] if sys.argv else ""
    return Path(script).stem == "sea-lens" or (script == "-m" and "sea_lens" in sys.orig_argv)


def end_at_once(*_: Any) -> None:
    """End the process with one line; where it is in the middle of writing, that temporary goes too."""
    files = sys.modules.get("sea_lens._support.files")
    if (remove := getattr(files, "remove_living", None)) is not None:
        remove()
    # A progress bar may have hidden it.
    os.write(2, _SHOW_CURSOR * os.isatty(2) + _LINE)
    os._exit(STATUS)


def watch_imports() -> None:
    """Have an interrupt end the process at once from here on, as long as there is nothing to clean up."""
    if not is_command() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    # Elsewhere than in the main thread there is nothing to watch.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, end_at_once)
        # What is raised where nobody can catch it would be lost, with a traceback.
        sys.unraisablehook = _unraisable


def _unraisable(told: Any) -> None:
    if told.exc_type is KeyboardInterrupt:
        end_at_once()
    sys.__unraisablehook__(told)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Where interrupts are watched: the first is raised in here, a second ends the process at once."""
    if signal.getsignal(signal.SIGINT) is not end_at_once:
        yield
        return
    signal.signal(signal.SIGINT, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, end_at_once)
        # All is cleaned up. Python takes signal handlers away while it ends, which may last: the timer would kill it.
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        # Where it was raised in code that `exec` ran from text, as dataclasses do, Python keeps in mind that it has to
        # kill itself at its end, with whatever status it ends; running any such code anew makes it forget.
        exec("")


def has_come() -> bool:
    """Whether the process was interrupted, whatever a library has made of it."""
    return _came


def _raise(*_: Any) -> None:
    global _came
    _came = True
    signal.signal(signal.SIGINT, end_at_once)
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, end_at_once)
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
    raise KeyboardInterrupt


# Here, so that importing this module before all others is enough.
watch_imports()
