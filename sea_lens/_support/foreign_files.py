"""Files that other programs wrote, which may hold anything: read as plain data or refused, never run."""

import contextlib
import io
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ..errors import FileError, InputError, SeaLensError
from .regular_files import open_regular, read_regular

# What a file that `torch.save` wrote begins with: it is a zip archive.
_ZIP = b"PK\x03\x04"
_CLASS = re.compile(r"(?:Unsupported (?:global|class)[^\n]*?|GLOBAL )([\w.]+\.[\w.]+)")


@contextlib.contextmanager
def as_foreign(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turn errors in reading the content of a file into one FileError that names it; `what` it was taken for."""
    try:
        yield
    except (
        ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError, OSError,
    ) as error:  # fmt: skip
        # What a file gives is no argument of its user's.
        if isinstance(error, SeaLensError) and not isinstance(error, InputError):
            raise
        raise FileError(f"{path} cannot be read as {what}: {error}") from error


def first_bytes(path: str | os.PathLike[str], n: int = 4) -> bytes:
    """What a regular file begins with; errors as `open_regular`."""
    with open_regular(path) as file:
        return file.read(n)


def is_torch_file(start: bytes) -> bool:
    """Whether a file that begins so may be one that `torch.save` wrote."""
    return start == _ZIP


def read_torch_file(path: str | os.PathLike[str], classes: Sequence[type]) -> Any:
    """What `torch.save` wrote, as tensors and plain values; a pickle that names any other code is refused, and not run.

    Args:
        path: the file; tensors come to the CPU.
        classes: further classes that it may name, by module and name. None of their code is run: an object gets the
            attributes that the file holds.

    Raises:
        FileError: missing, truncated, compressed, or one that names other classes.
    """
    content = read_regular(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # `torch.save` compresses nothing: what would unfold to more than the file itself is not its work.
            if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                raise FileError(f"{path} is a compressed archive, which torch.save never writes")
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except FileError:
        raise
    # Whatever a damaged pickle makes its reader do.
    except Exception as error:
        named = _CLASS.search(str(error))
        why = f"it names {named[1]}, and code in a file is never run" if named else "it is damaged, or no tensors alone"
        raise FileError(f"{path} cannot be read as tensors and plain values: {why}") from error


def as_floats(value: Any, name: str) -> Float64[Tensor, "..."]:
    """A tensor of a foreign file in float64, in memory of its own.

    Raises:
        ValueError: it is no plain tensor of floating-point numbers, or claims more of them than the file holds.
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        raise ValueError(f"{name} is no plain tensor ({type(value).__name__})")
    if not value.is_floating_point():
        raise ValueError(f"{name} holds {value.dtype}, no floating-point numbers")
    # One number can be spread over any shape without taking memory, until it is copied.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{name} has shape {tuple(value.shape)}, more numbers than the file holds")
    found = value.detach().to(torch.float64)
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"{name} holds NaN or infinite values")
    return found.clone(memory_format=torch.contiguous_format)
