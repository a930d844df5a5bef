"""Safetensors files with a JSON header and a seal: a digest over every byte, so that no change goes unnoticed.

The layout is that of safetensors (8 bytes with the length of a JSON header, the header, the tensors' bytes), which any
reader of safetensors takes. Its own writer orders the header by chance; here equal content gives equal bytes.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import FileError, InputError, SeaLensError
from .files import write_atomically
from .regular_files import check_name, open_regular, regular_size
from .seals import NO_SEAL, Seal, find_seal
from .strict_json import parse_json

# What the file is, its header, the form of the file, and its seal; version 0.1.0 wrote the first two alone.
_KIND, _HEADER, _FORMAT, _SEAL = "sea_lens.kind", "sea_lens.header", "sea_lens.format", "sea_lens.sha256"
FORMAT = "2"
# More than any edit needs, and little enough that reading a foreign header takes no memory to speak of.
LONGEST_HEADER = 8 * 2**20
_MOST_AXES = 8
_CHUNK = 2**20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    header: Mapping[str, Any],
    by_any: bool = False,
) -> None:
    """Write tensors as safetensors; `kind` says what the file is, `header` is any JSON content.

    Equal arguments give equal bytes, in every process. `by_any` is for `write_atomically`.

    Raises:
        InputError: the header is no JSON content, or too long to be read again.
        FileError: as `write_atomically`.
    """
    # In the order of safetensors' own writer: the widest numbers first, so that all of them are aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    pieces = [bytes_of(tensors[name]) for name in order]
    entries: dict[str, Any] = {}
    end = 0
    for name, piece in zip(order, pieces, strict=True):
        tensor, start, end = tensors[name], end, end + len(piece)
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    try:
        content = json.dumps(header, sort_keys=True, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"cannot write {path}: its header is no JSON content ({error})") from error
    # Half characters, as a path that is no text can have, become question marks.
    content = content.encode("utf-8", "replace").decode()
    entries["__metadata__"] = {_KIND: kind, _HEADER: content, _FORMAT: FORMAT, _SEAL: NO_SEAL}
    text = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LONGEST_HEADER:
        raise InputError(f"cannot write {path}: its header has {len(text)} bytes, expected at most {LONGEST_HEADER}")
    prefix = len(text).to_bytes(8, "little") + text
    seal = Seal()
    for piece in (prefix, *pieces):
        seal.update(piece)
    write_atomically(path, [seal.put_into(prefix), *pieces], by_any=by_any)


def bytes_of(tensor: Tensor) -> memoryview:
    """The numbers of a tensor as they lie in memory: little-endian, as on every machine that torch runs on."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # A tensor of one number counts as contiguous whatever its stride is, and cannot be viewed with it.
    flat = flat if flat.stride(0) == 1 else flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data


def read_tensors(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote: the tensors and the header.

    Raises:
        FileError: the file is missing, truncated, changed since it was written, no safetensors file (a pickle, say), or
            of another kind.
    """
    header = _checked_header(path, kind)
    return _opened(path, lambda file: {name: file.get_tensor(name) for name in file.keys()}), header  # noqa: SIM118


class TensorFile:
    """A file that `write_tensors` wrote, whose tensors are read one at a time.

    They are copied out of the file instead of mapped into memory: pages that were looked at once would stay there.

    Attributes:
        path: the file.
        header: what was written with the tensors.
        shapes: of the tensors by name, with their dtypes.

    Raises:
        FileError: as `read_tensors`.
    """

    def __init__(self, path: str | os.PathLike[str], *, kind: str) -> None:
        self.path = path
        self.header = _checked_header(path, kind)
        start, entries = _raw_header(path)
        self._begin = len(start)
        self._entries = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        self.shapes = {name: (tuple(entry["shape"]), _DTYPES[entry["dtype"]]) for name, entry in self._entries.items()}

    def tensor(self, name: str) -> Tensor:
        """One of the tensors, by its name in `shapes`.

        Raises:
            FileError: the file is gone, or shorter than it was.
        """
        shape, dtype = self.shapes[name]
        start, end = self._entries[name]["data_offsets"]
        with open_regular(self.path) as file:
            file.seek(self._begin + start)
            content = bytearray(end - start)
            if file.readinto(content) != end - start:  # type: ignore[attr-defined]
                raise FileError(f"{self.path} was changed while it was in use")
        return torch.frombuffer(content, dtype=dtype).reshape(shape) if content else torch.zeros(shape, dtype=dtype)


def read_header(path: str | os.PathLike[str], *, kind: str) -> dict[str, Any]:
    """The header alone; raises as `read_tensors` does."""
    header = _checked_header(path, kind)
    _opened(path, lambda file: None)
    return header


def read_kind(path: str | os.PathLike[str], kinds: Sequence[str]) -> str:
    """Which of these kinds a file is of; its content is not looked at.

    Raises:
        FileError: missing, no safetensors file, or of none of these kinds.
    """
    return _start(path, kinds)[1][_KIND]


def _start(path: str | os.PathLike[str], kinds: Sequence[str]) -> tuple[bytes, dict[str, str]]:
    start, entries = _raw_header(path)
    metadata = entries.get("__metadata__", {})
    found = metadata.get(_KIND)
    if found not in kinds:
        what = f"a sea_lens {found}" if found else "a safetensors file that sea_lens did not write"
        raise FileError(f"{path} is {what}: expected a sea_lens {' or '.join(kinds)}")
    return start, metadata


def _checked_header(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    start, metadata = _start(path, [kind])
    _check_seal(path, start, metadata)
    with as_file_errors(path):
        header = parse_json(metadata[_HEADER])
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
    return header


def _incomplete(path: str | os.PathLike[str], why: object) -> FileError:
    return FileError(f"{path} is not a complete safetensors file ({why}); pickles are never read")


def _raw_header(path: str | os.PathLike[str]) -> tuple[bytes, dict[str, Any]]:
    """Everything in front of the tensors' bytes, and the JSON object in it."""
    if not os.path.lexists(check_name(path)):
        raise FileError(f"{path}: no such file")
    size = regular_size(path)
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise _incomplete(path, f"it has {size} bytes, too few for its header")
        if length > LONGEST_HEADER:
            raise _incomplete(path, f"its header would have {length} bytes")
        text = file.read(length)
    try:
        entries = parse_json(text.decode("utf-8"))
        metadata = entries.get("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are no texts")
        _check_entries({name: entry for name, entry in entries.items() if name != "__metadata__"}, size - 8 - length)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _incomplete(path, error) from error
    return length.to_bytes(8, "little") + text, entries


def _check_entries(entries: Mapping[str, Any], size: int) -> None:
    """Refuse tensors that would not fill their part of the file, before anything is made for them.

    Raises:
        ValueError: saying which.
    """
    for name, entry in entries.items():
        shape, dtype = entry["shape"], entry["dtype"]
        if dtype not in _DTYPES:
            raise ValueError(f"{name} is of dtype {dtype!r}: expected one of {', '.join(_DTYPES)}")
        if len(shape) > _MOST_AXES or not all(type(length) is int and 0 <= length <= size for length in shape):
            raise ValueError(f"{name} has shape {shape}"[:200])
        start, end = entry["data_offsets"]
        if end - start != math.prod(shape) * _DTYPES[dtype].itemsize or not 0 <= start <= end <= size:
            raise ValueError(f"{name} does not fill its part of the file")


def _check_seal(path: str | os.PathLike[str], start: bytes, metadata: Mapping[str, str]) -> None:
    """Refuse a file that is not, byte for byte, what was written; files of version 0.1.0 have no seal.

    Raises:
        FileError: it was changed, lacks its seal, or is of a later form.
    """
    ours = {name for name in metadata if name.startswith("sea_lens.")}
    if ours == {_KIND, _HEADER}:
        return
    if metadata.get(_FORMAT, FORMAT) != FORMAT:
        raise FileError(f"{path} is of form {metadata[_FORMAT]!r}, which this version of sea_lens does not know")
    if ours != {_KIND, _HEADER, _FORMAT, _SEAL}:
        raise FileError(f"{path} is damaged: its metadata are {sorted(ours)}, some of what sea_lens writes")
    seal = Seal()
    try:
        seal.update(find_seal(start, metadata[_SEAL]))
    except ValueError as error:
        raise FileError(f"{path} is damaged: {error}") from error
    with open_regular(path) as file:
        file.seek(len(start))
        while piece := file.read(_CHUNK):
            seal.update(piece)
    if seal.text != metadata[_SEAL]:
        raise FileError(f"{path} is damaged: its content is not what its sha256 says")


class ContentError(Exception):
    """What a sound file holds cannot be used; the message goes on behind the file's name."""


class ImpossibleError(InputError):
    """Something made of values that nothing gives: no fit, no evaluation. In a file, the file is damaged."""


@contextlib.contextmanager
def as_file_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors in reading the content of a file that says it is ours into a FileError that names it."""
    try:
        yield
    except ContentError as error:
        raise FileError(f"{path} {error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        if isinstance(error, SeaLensError) and not isinstance(error, ImpossibleError):
            raise
        raise FileError(f"{path} is damaged, or was not written by sea_lens ({error})") from error


def _opened(path: str | os.PathLike[str], read: Callable[[Any], Any]) -> Any:
    try:
        with safe_open(path, "pt") as file:
            return read(file)
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise _incomplete(path, error) from error
