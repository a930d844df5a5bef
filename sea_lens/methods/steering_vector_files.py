"""Files of the steering-vectors library: its `SteeringVector`, as `torch.save` writes it (docs/method.md 5.7).

Reading needs no package: the file says the layers, their vectors, and the kind of module that they are added behind.
"""

import io
import os
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from .._support.files import write_atomically
from .._support.foreign_files import as_foreign
from ..errors import MissingPackageError
from .given_vectors import GivenVectors, given_vectors

STEERING_VECTORS = "steering-vectors"
# The library's names of modules whose outputs are sites here; it has norms too, which are none.
SITES_OF = {"decoder_block": "resid_post", "self_attn": "attn_out", "mlp": "mlp_out"}
TYPES_OF = {site: kind for kind, site in SITES_OF.items()}


class SavedVector:
    """Stands in for the library's class when a file is read: it has what the file holds, and no code."""

    layer_activations: Any = None
    layer_type: Any = "decoder_block"


# What the file calls it.
SavedVector.__module__, SavedVector.__qualname__ = "steering_vectors.steering_vector", "SteeringVector"


def steering_vector(path: str | os.PathLike[str], saved: SavedVector) -> GivenVectors:
    """The edit of a library's vector.

    Raises:
        FileError: it acts on modules that are no site, counts layers from the end, or is damaged.
    """
    with as_foreign(path, "a SteeringVector of the steering-vectors library"):
        kind, found = saved.layer_type, saved.layer_activations
        if not isinstance(kind, str) or kind not in SITES_OF:
            raise ValueError(f"it is for layer_type {kind!r}, expected one of {', '.join(SITES_OF)}")
        if not isinstance(found, Mapping) or not found:
            raise ValueError("it has no vectors by layer")
        return given_vectors(path, STEERING_VECTORS, SITES_OF[kind], found, more={"layer_type": kind})


def write_steering_vector(
    path: str | os.PathLike[str], vectors: Mapping[int, Float32[Tensor, " d"]], site: str
) -> None:
    """Write vectors as a `SteeringVector`, by `torch.save`.

    Args:
        path: the file.
        vectors: of each layer.
        site: one of `TYPES_OF`.

    Raises:
        FileError: the file cannot be written.
        MissingPackageError: the package steering-vectors is not installed; its class has to be there to be written.
    """
    try:
        from steering_vectors import SteeringVector
    except ImportError as error:
        raise MissingPackageError(
            "writing a SteeringVector needs the package steering-vectors: install it with "
            "pip install --no-deps steering-vectors (it runs with, and does not ask for, transformers 5)"
        ) from error
    content = io.BytesIO()
    torch.save(SteeringVector(dict(vectors), TYPES_OF[site]), content)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())
