"""Files that can be read at once: no pipe or device, which may never end, and no name that no file can have."""

import os
import stat
from pathlib import Path

from ..errors import FileError


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


def check_regular_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file that is there and is a file: a link's target counts, nothing is opened.

    Raises:
        FileError: missing, a folder, a pipe, a device or a socket, or a name that no file can have.
    """
    name = check_name(path)
    try:
        mode = name.stat().st_mode
    except OSError as error:
        raise FileError(f"{_told(name)}: {error.strerror or error}") from error
    except ValueError as error:
        raise FileError(f"{_told(name)}: {error}") from error
    if stat.S_ISDIR(mode):
        raise FileError(f"{path} is a folder: expected a file")
    if not stat.S_ISREG(mode):
        raise FileError(f"{path} is {_kind(mode)}: expected a file")
    return name


def _kind(mode: int) -> str:
    kinds = {
        "a pipe": stat.S_ISFIFO,
        "a device": stat.S_ISCHR,
        "a block device": stat.S_ISBLK,
        "a socket": stat.S_ISSOCK,
    }
    return next((kind for kind, holds in kinds.items() if holds(mode)), "no file")


def _told(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 300 else f"{text[:200]}… ({len(text)} characters)"


def _short(name: str) -> str:
    return repr(name if len(name) <= 300 else f"{name[:200]}… ({len(name)} characters)")
