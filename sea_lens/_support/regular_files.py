"""Reading files that can be read at once: no pipe or device, which may never end, and no name that no file can have."""

import os
import stat
from pathlib import Path
from typing import IO

from ..errors import FileError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
)
# Far beyond any file of rows or results; a file with a hole in it can say to have any size.
_LARGEST = 2**32


def why(error: Exception) -> str:
    """The reason that the system or Python gives for not taking a path."""
    return getattr(error, "strerror", None) or str(error)


def what_is_there(mode: int) -> str:
    """What a path leads to, by its mode: "a file", "a folder", "a device" and so on."""
    return next((name for is_one, name in _KINDS if is_one(mode)), "a file")


def check_name(path: str | os.PathLike[str]) -> Path:
    """The path, where a file can have this name.

    Raises:
        FileError: no text or path, or one with a NUL or half a character (a lone surrogate).
    """
    try:
        name = os.fspath(path)
    except TypeError:
        raise FileError(f"expected the path of a file, got {type(path).__name__}") from None
    if not isinstance(name, str):
        raise FileError(f"expected the path of a file as text, got {name!r}")
    if "\0" in name:
        raise FileError(f"{_short(name)}: a file's name cannot hold a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise FileError(f"{_short(name)}: a file's name must be text, and this one holds half a character")
    return Path(name)


def regular_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a file that is there and is a file: a link's target counts, nothing is opened.

    Raises:
        FileError: missing, a folder, a pipe, a device or a socket, or a name that no file can have.
    """
    name = check_name(path)
    try:
        found = name.stat()
    except (OSError, ValueError) as error:
        raise FileError(f"{_told(name)}: {why(error)}") from error
    if not stat.S_ISREG(found.st_mode):
        raise FileError(f"{path} is {what_is_there(found.st_mode)}: expected a file")
    return found.st_size


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """A regular file, open for reading; errors as `regular_size`, also where it may not be read."""
    regular_size(path)
    try:
        return Path(path).open("rb")
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: {why(error)}") from error


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file; errors as `open_regular`, also where it is too large to be read whole."""
    if (size := regular_size(path)) > _LARGEST:
        raise FileError(f"{path} has {size} bytes: expected at most {_LARGEST}")
    with open_regular(path) as file:
        try:
            return file.read()
        except (OSError, MemoryError) as error:
            raise FileError(f"{path}: {why(error) or 'not enough memory'}") from error


def _told(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 300 else f"{text[:200]}… ({len(text)} characters)"


def _short(name: str) -> str:
    return repr(name if len(name) <= 300 else f"{name[:200]}… ({len(name)} characters)")
