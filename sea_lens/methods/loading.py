"""Reading an edit of any method, or of another tool, from its file."""

import os

from .._support.storage import read_kind
from ..edits.base import Edit
from ..spectral.edit import SpectralEdit
from .ablated_direction import DirectionalAblation
from .adapters import LoRA
from .concept_erasure import LEACE
from .covariance_ratios import GeneralisedEigen
from .foreign import read_foreign
from .given_vectors import GivenVectors
from .mean_steering import MeanDifference
from .plane_rotation import AngularSteering
from .probed_heads import ITI

_METHODS = {
    method.kind: method
    for method in (
        SpectralEdit,
        MeanDifference,
        ITI,
        LEACE,
        LoRA,
        GivenVectors,
        DirectionalAblation,
        GeneralisedEigen,
        AngularSteering,
    )
}


def load_edit(path: str | os.PathLike[str]) -> Edit:
    """The edit in a file, whatever method made it, and of some other tools (docs/method.md 5.7).

    Other tools' files are repeng's control vectors (GGUF, which EasySteer writes too), a `SteeringVector` of the
    steering-vectors library, the vectors of lm-eval's model `steered`, and the projections of SEA's released code. They
    are read as plain data: code in a pickle is never run.

    Args:
        path: the file; for the projections one of `…uu_positive.pt` and `…uu_negative.pt`, or the folder of both.

    Returns:
        The edit; that of another tool at its own site, at all positions, and at strength 1 as the file says.

    Raises:
        FileError: missing, truncated or foreign, a file of sea_lens that holds no edit, or one of another tool that
            cannot be said as an edit here.
        MissingPackageError: the package gguf, which reads control vectors, is not installed.

    Warns:
        SeaLensWarning: the released code uses its projections otherwise.

    Example:
        >>> import tempfile
        >>> edit = sl.mean_difference(sl.capture(bed.model, bed.demonstrations))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     edit.save(f"{folder}/edit.safetensors")
        ...     loaded = sl.load_edit(f"{folder}/edit.safetensors")
        >>> type(loaded).__name__, loaded.layers
        ('MeanDifference', (0, 1, 2))
    """
    foreign = read_foreign(path)
    return foreign if foreign is not None else _METHODS[read_kind(path, list(_METHODS))].load(path)
