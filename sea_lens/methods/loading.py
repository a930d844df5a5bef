"""Reading a fitted edit of any method from its file."""

import os

from .._support.storage import read_kind
from ..edits.base import Edit
from ..spectral.edit import SpectralEdit
from .adapters import LoRA
from .concept_erasure import LEACE
from .mean_steering import MeanDifference
from .probed_heads import ITI

_METHODS = {method.kind: method for method in (SpectralEdit, MeanDifference, ITI, LEACE, LoRA)}


def load_edit(path: str | os.PathLike[str]) -> Edit:
    """The edit in a file, whatever method made it.

    Raises:
        FileError: missing, truncated or foreign, or a file of sea_lens that holds no edit.

    Example:
        >>> import tempfile
        >>> edit = sl.mean_difference(sl.capture(bed.model, bed.demonstrations))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     edit.save(f"{folder}/edit.safetensors")
        ...     loaded = sl.load_edit(f"{folder}/edit.safetensors")
        >>> type(loaded).__name__, loaded.layers
        ('MeanDifference', (0, 1, 2))
    """
    return _METHODS[read_kind(path, list(_METHODS))].load(path)
