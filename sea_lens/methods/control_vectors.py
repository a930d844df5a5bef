"""repeng's control vectors, GGUF files that EasySteer and llama.cpp read too (docs/method.md 5.7).

`direction.L` is what is added to the output of decoder block L, counted from 0, at every position.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from .._support.files import write_atomically
from .._support.foreign_files import as_foreign
from .._support.regular_files import regular_size
from ..errors import MissingPackageError
from .given_vectors import GivenVectors, given_vectors

REPENG = "repeng"
# What a file of this format begins with.
MAGIC = b"GGUF"
_ARCHITECTURE = "controlvector"
_DIRECTION = re.compile(r"direction\.(0|[1-9][0-9]{0,8})")


def read_control_vectors(path: str | os.PathLike[str]) -> GivenVectors:
    """The edit in a GGUF file of control vectors.

    Raises:
        FileError: damaged, or a GGUF file of something else, such as a model.
        MissingPackageError: the package gguf is not installed.
    """
    gguf = _library()
    # The library maps the file into memory, which a pipe cannot be.
    regular_size(path)
    with as_foreign(path, "repeng's control vectors (GGUF)"):
        reader = _whole(gguf)(os.fspath(path))
        kind = _text(reader, "general.architecture")
        if kind != _ARCHITECTURE:
            raise ValueError(f"it is of architecture {kind!r}, expected {_ARCHITECTURE!r}")
        found = {}
        for tensor in reader.tensors:
            match = _DIRECTION.fullmatch(tensor.name)
            if match is None:
                raise ValueError(
                    f"it has a tensor {tensor.name!r}: expected 'direction.L' alone, L a layer counted from 0"
                )
            if tensor.data.dtype.kind != "f":
                raise ValueError(f"{tensor.name} is of type {tensor.tensor_type.name}, expected unquantised numbers")
            found[int(match[1])] = torch.from_numpy(np.array(tensor.data, dtype=np.float64))
        hint = _text(reader, f"{_ARCHITECTURE}.model_hint")
        return given_vectors(path, REPENG, "resid_post", found, model={} if hint is None else {"model_type": hint})


def write_control_vectors(
    path: str | os.PathLike[str], vectors: Mapping[int, Float32[Tensor, " d"]], model_type: str
) -> None:
    """Write vectors as repeng does.

    Args:
        path: the file.
        vectors: of each layer.
        model_type: what Hugging Face calls the kind of model.

    Raises:
        FileError: the file cannot be written.
        MissingPackageError: the package gguf is not installed.
    """
    gguf = _library()
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "vectors.gguf"
        writer = gguf.GGUFWriter(whole, _ARCHITECTURE)
        writer.add_string(f"{_ARCHITECTURE}.model_hint", model_type)
        writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(vectors))
        for layer, vector in vectors.items():
            writer.add_tensor(f"direction.{layer}", vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_atomically(path, whole.read_bytes())


def _text(reader: Any, name: str) -> str | None:
    field = reader.get_field(name)
    value = None if field is None else field.contents()
    if value is not None and not isinstance(value, str):
        raise ValueError(f"its {name} is no text")
    return value


def _whole(gguf: Any) -> type:
    """The library's reader, which stops at the end of a file: by itself it goes on reading nothing there."""

    class Whole(gguf.GGUFReader):
        def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            found = super()._get(offset, dtype, count, override_order)
            if len(found) != int(count):
                raise ValueError("it is truncated")
            return found

    return Whole


def _library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingPackageError(
            "control vectors (GGUF) need the package gguf: install it with pip install 'sea-lens[foreign]'"
        ) from error
    return gguf
