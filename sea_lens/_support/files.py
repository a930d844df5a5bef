"""Writing files whole or not at all."""

import contextlib
import hashlib
import os
import socket
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from secrets import token_hex

from ..errors import FileError
from .processes import is_first
from .regular_files import check_name, what_is_there, why

# No file system that is in use has longer names, in bytes.
_LONGEST_NAME = 255
# A temporary of another machine, whose processes cannot be looked at, is left over after a day.
_STALE = 24 * 3600
# Temporaries that this process is writing now.
_living: dict[str, Path] = {}


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a path that `write_atomically` could not write; nothing is left behind.

    Raises:
        FileError: a name that no file can have, something there that is no regular file (a link is not followed), or a
            folder that is missing or cannot be written to.
    """
    path = check_name(path)
    _check_target(path)
    try:
        handle, temporary = _temporary(path)
        os.close(handle)
        _removed(temporary)
    except OSError as error:
        raise FileError(f"cannot write {path}: {why(error)}") from error


def write_atomically(
    path: str | os.PathLike[str], content: bytes | str | Iterable[bytes | memoryview], *, by_any: bool = False
) -> None:
    """Write a file whole or not at all: into a temporary neighbour first, then renamed over the target.

    The content is on disk before the new name is, and both are when this returns. Temporaries of writes of the same
    file that were killed are removed.

    Args:
        path: the file; a link, a device or a folder in its place is left alone.
        content: a text is written as UTF-8; several pieces one after the other.
        by_any: whether any of several processes of a run writes this file, and not the first alone.

    Raises:
        FileError: as `check_writable`, or the disk is full.
    """
    if not (by_any or is_first()):
        return
    path = check_name(path)
    pieces = [content.encode("utf-8")] if isinstance(content, str) else content
    pieces = [pieces] if isinstance(pieces, bytes) else pieces
    _check_target(path)
    try:
        handle, temporary = _temporary(path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {why(error)}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        _removed(temporary)
        raise FileError(f"cannot write {path}: {why(error)}") from error
    except BaseException:
        _removed(temporary)
        raise
    _living.pop(temporary.name, None)
    _synchronise(path.parent)
    _remove_leftovers(path)


def remove(path: Path) -> None:
    """Remove a file that is no longer needed, if it is there; of several processes of a run the first does."""
    if is_first():
        path.unlink(missing_ok=True)


def _check_target(path: Path) -> None:
    try:
        if len(os.fsencode(path.name)) > _LONGEST_NAME:
            raise FileError(f"cannot write {path}: its name has more than {_LONGEST_NAME} bytes")
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"cannot write {path}: {why(error)}") from error
    if not stat.S_ISREG(mode):
        raise FileError(f"cannot write {path}: it is {what_is_there(mode)}, expected a file or nothing there")


def _stem(path: Path) -> str:
    """What the names of a file's temporaries begin with; a long name is told by its digest, so that there is room."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME // 2:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f".{name}.sea_lens-"


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _temporary(path: Path) -> tuple[int, Path]:
    """A new file beside another, open for writing, whose name says by whom: machine, process, and a random part."""
    temporary = path.with_name(f"{_stem(path)}{_host()}-{os.getpid()}-{token_hex(4)}")
    # Before it is there, since a write in another thread may look for leftovers at any moment.
    _living[temporary.name] = temporary
    try:
        # Readable as the user's mask has it, as any new file.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        return os.open(temporary, flags, 0o666), temporary
    except BaseException:
        _living.pop(temporary.name, None)
        raise


def _removed(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
    _living.pop(temporary.name, None)


def remove_living() -> None:
    """Remove what this process has begun to write: for a process that ends at once."""
    for temporary in list(_living.values()):
        _removed(temporary)


def _synchronise(folder: Path) -> None:
    """Have a folder's new names on disk; not every file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove_leftovers(path: Path) -> None:
    """Remove temporaries of a file whose writers were killed."""
    stem = _stem(path)
    with contextlib.suppress(OSError):
        for entry in os.scandir(path.parent):
            if entry.name.startswith(stem) and _is_left_over(entry, entry.name.removeprefix(stem)):
                Path(entry.path).unlink(missing_ok=True)


def _is_left_over(entry: os.DirEntry[str], owner: str) -> bool:
    host, _, rest = owner.partition("-")
    pid = rest.partition("-")[0]
    if host != _host() or not pid.isascii() or not pid.isdigit():
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE
    if int(pid) == os.getpid():
        return entry.name not in _living
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False
