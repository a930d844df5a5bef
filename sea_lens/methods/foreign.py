"""Which of other tools' formats a file is in, and the edit in it (docs/method.md 5.7)."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from .._support.foreign_files import first_bytes, is_torch_file, read_torch_file
from .._support.regular_files import check_name
from ..edits.base import Edit
from ..errors import FileError
from .control_vectors import MAGIC, read_control_vectors
from .released_files import read_released, released_pair
from .steered_files import is_steered, steered_vectors
from .steering_vector_files import SavedVector, steering_vector

_READ = (
    "a SteeringVector of the steering-vectors library, vectors of lm-eval's steered model by module, or SEA's released "
    "pair …uu_positive.pt and …uu_negative.pt"
)


def read_foreign(path: str | os.PathLike[str]) -> Edit | None:
    """The edit in another tool's file; None where it is in none of their formats.

    Raises:
        FileError: it is in one of them and damaged, or cannot be said as an edit here.
        MissingPackageError: the package that reads the format is not installed.

    Warns:
        SeaLensWarning: SEA's released projections are used otherwise here than by the released code.
    """
    name = check_name(path)
    if not os.path.lexists(name):
        return None
    if name.suffix.lower() == ".csv":
        raise FileError(
            f"{path} is a table: one of lm-eval's steered model names features of sparse autoencoders, whose vectors "
            "are not in it; write them as a .pt file of vectors"
        )
    if name.is_dir():
        pair = released_pair(name)
        return None if pair is None else read_released(pair)
    start = first_bytes(name)
    if start == MAGIC:
        return read_control_vectors(path)
    return _of_torch_file(path, name) if is_torch_file(start) else None


def _of_torch_file(path: str | os.PathLike[str], name: Path) -> Edit:
    pair = released_pair(name)
    if pair is not None:
        return read_released(pair)
    content = read_torch_file(path, [SavedVector])
    if type(content) is SavedVector:
        return steering_vector(path, content)
    if is_steered(content):
        return steered_vectors(path, content)
    raise FileError(f"{path} holds {_told(content)}: expected {_READ}")


def _told(content: Any) -> str:
    if isinstance(content, Tensor):
        # As files of AxBench and EasySteer do.
        return f"a tensor of shape {tuple(content.shape)}, and not which layer and site it is for"
    return f"a {type(content).__name__}"
