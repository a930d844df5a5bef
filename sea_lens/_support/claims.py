"""One process at a time for a file that grows, told by a lock that goes with the process, however it ends."""

import contextlib
import os
import weakref
from pathlib import Path

from ..errors import FileError
from .regular_files import regular_size, why

try:
    import fcntl
except ImportError:  # where there are no such locks, a second process is not noticed before it has written
    fcntl = None


class Claim:
    """The claim of this process to a file that is there, until it ends or nobody holds this object.

    A later claim of the same process takes the place of an earlier one: a run that was interrupted can be begun anew.

    Args:
        path: a regular file.

    Raises:
        FileError: another process has claimed it, or it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        if (before := _held.pop(self.path, None)) is not None:
            before._release()
        regular_size(path)
        try:
            self._handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise FileError(f"{path}: {why(error)}") from error
        self._release = weakref.finalize(self, os.close, self._handle)
        try:
            if fcntl is not None:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release()
            raise FileError(f"{path} is being written by another process: wait for it, or give another path") from None
        except OSError:
            pass  # Not every file system has locks.
        _held[self.path] = self

    @property
    def holds(self) -> bool:
        """Whether what was claimed still stands at its place, and no later claim has taken it over."""
        with contextlib.suppress(OSError):
            return self._release.alive and os.path.samestat(os.fstat(self._handle), self.path.stat())
        return False


# What this process claims, by name.
_held: weakref.WeakValueDictionary[Path, Claim] = weakref.WeakValueDictionary()
