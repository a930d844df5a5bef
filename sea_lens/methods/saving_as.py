"""Writing an edit in another tool's format, where it can be said in that (docs/method.md 5.7)."""

import os
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from ..edits.base import Edit, as_edit
from ..edits.where import LayerChoice, Strength
from ..errors import InputError
from ..models.language_model import NORMS_BEHIND
from ..models.token_positions import Positions, positions_name
from .control_vectors import REPENG, write_control_vectors
from .steering import Steering
from .steering_vector_files import STEERING_VECTORS, TYPES_OF, write_steering_vector

# The sites that each format can say.
FORMATS = {REPENG: ("resid_post",), STEERING_VECTORS: tuple(TYPES_OF)}


def save_as(
    edit: Edit,
    path: str | os.PathLike[str],
    format: str,
    *,
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    positions: Positions | None = None,
    model_type: str | None = None,
) -> None:
    """Write an edit that adds fixed vectors in the format of another tool, which acts at all positions.

    What is written in float32 is strength times vector, so that the tool's own strength of 1 is that of this edit. At
    `attn_out` and `mlp_out` a tool adds to the output of the module. In a model with a norm behind it, such as Gemma 2,
    that is another place than the edit's, and such an edit is refused; one whose provenance says nothing of its model
    is taken for one without such a norm.

    Args:
        edit: such as `mean_difference` makes, at site `resid_post`; for "steering-vectors" also `attn_out`, `mlp_out`.
        path: the file.
        format: "repeng" for its control vectors (GGUF; llama.cpp takes no layer 0), or "steering-vectors".
        layers, strength, positions: as in `Edit.applied`; what the edit remembers where they are not given.
        model_type: for repeng, what Hugging Face's configuration calls the kind of model, such as "llama"; by default
            what the file says that the edit was read from.

    Raises:
        InputError: an unknown format, an edit that it cannot say (other methods, sites or positions, or behind a norm),
            a strength that differs between tokens, vectors beyond float32, or no `model_type`.
        FileError: the file cannot be written.
        MissingPackageError: the package gguf, or steering-vectors, is not installed.

    Example:
        >>> import tempfile
        >>> edit = sl.mean_difference(sl.capture(bed.model, bed.demonstrations, site="resid_post"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/edit.gguf"
        ...     sl.save_as(edit, path, "repeng", layers="last-2", strength=2.0, positions="all", model_type="llama")
        ...     loaded = sl.load_edit(path)
        >>> type(loaded).__name__, loaded.site, loaded.layers
        ('GivenVectors', 'resid_post', (1, 2))
    """
    if format not in FORMATS:
        raise InputError(f"unknown format {format!r}: expected one of {', '.join(FORMATS)}")
    edit = as_edit(edit)
    if not isinstance(edit, Steering) or edit.site not in FORMATS[format]:
        raise InputError(
            f"{format} cannot say this edit ({type(edit).__name__} at {edit.site!r}): expected one that adds fixed "
            f"vectors at {' or '.join(map(repr, FORMATS[format]))}"
        )
    about = edit.provenance.get("model", {})
    behind = about.get(NORMS_BEHIND)
    if isinstance(behind, (list, tuple)) and edit.site in behind:
        raise InputError(
            f"the model that this edit was fitted on has a norm in front of {edit.site!r}: {format} adds in front of "
            f"that norm, and the edit behind it: expected an edit at 'resid_post'"
        )
    where = edit.where(layers, strength, None, positions)
    if where.positions != "all":
        raise InputError(
            f"{format} adds vectors at all positions, and this edit acts at {positions_name(where.positions)!r}: "
            'expected positions="all"'
        )
    vectors = {layer: _written(edit, layer, alpha) for layer, alpha in where.strengths.items()}
    if format == STEERING_VECTORS:
        write_steering_vector(path, vectors, edit.site)
        return
    said: Any = about.get("model_type") if model_type is None else model_type
    if not isinstance(said, str) or not said:
        raise InputError("repeng's files say the kind of model: expected model_type, such as 'llama'")
    write_control_vectors(path, vectors, said)


def _written(edit: Steering, layer: int, strength: float | Tensor) -> Float32[Tensor, " d"]:
    if isinstance(strength, Tensor):
        raise InputError("a file has one strength for each layer: expected numbers, got a tensor")
    vector = (strength * edit.vectors[layer][0]).to("cpu", torch.float32)
    if not bool(torch.isfinite(vector).all()):
        raise InputError(f"the vector of layer {layer} times its strength is beyond float32")
    return vector
