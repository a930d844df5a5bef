"""Safetensors files with a JSON header, and writing that leaves no half-written file behind."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import FileError, SeaLensError


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write a file whole or not at all: into a temporary neighbour first, then renamed over the target.

    Raises:
        FileError: the folder does not exist or cannot be written to.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise FileError(f"cannot write {path}: {error.strerror}") from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], *, kind: str, header: Mapping[str, Any]
) -> None:
    """Write tensors as safetensors; `kind` says what the file is, `header` is any JSON content.

    Raises:
        FileError: as `write_atomically`.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"sea_lens.kind": kind, "sea_lens.header": json.dumps(header, sort_keys=True)}
    write_atomically(path, save(contiguous, metadata=metadata))


def read_tensors(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote: the tensors and the header.

    Raises:
        FileError: the file is missing, truncated, no safetensors file (a pickle, say), or of another kind.
    """
    header = read_header(path, kind=kind)
    return _opened(path, lambda file: {name: file.get_tensor(name) for name in file.keys()}), header  # noqa: SIM118


def read_header(path: str | os.PathLike[str], *, kind: str) -> dict[str, Any]:
    """The header alone; raises as `read_tensors` does."""
    metadata = read_metadata(path, [kind])
    with as_file_errors(path):
        return json.loads(metadata["sea_lens.header"])


def read_metadata(path: str | os.PathLike[str], kinds: Sequence[str]) -> dict[str, str]:
    """Metadata of a file that must be of one of these kinds; "sea_lens.kind" says which.

    Raises:
        FileError: as `read_tensors`.
    """
    metadata = _opened(path, lambda file: file.metadata() or {})
    found = metadata.get("sea_lens.kind")
    if found not in kinds:
        what = f"a sea_lens {found}" if found else "a safetensors file that sea_lens did not write"
        raise FileError(f"{path} is {what}: expected a sea_lens {' or '.join(kinds)}")
    return metadata


class ContentError(Exception):
    """What a sound file holds cannot be used; the message goes on behind the file's name."""


@contextlib.contextmanager
def as_file_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors in reading the content of a file that says it is ours into a FileError that names it."""
    try:
        yield
    except ContentError as error:
        raise FileError(f"{path} {error}") from error
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, SeaLensError):
            raise
        raise FileError(f"{path} is damaged, or was not written by sea_lens ({error})") from error


def _opened(path: str | os.PathLike[str], read: Callable[[Any], Any]) -> Any:
    if not Path(path).is_file():
        raise FileError(f"{path} is a folder: expected a file" if Path(path).is_dir() else f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            return read(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} is not a complete safetensors file ({error}); pickles are never read") from error
