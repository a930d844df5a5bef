"""Vectors that another tool made, added where that tool adds them (docs/method.md 5.7)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from einops import rearrange
from jaxtyping import Float64
from torch import Tensor

from .._support.foreign_files import as_floats
from .._support.versions import versions
from ..edits.where import Defaults
from ..errors import UnsupportedModelError
from ..models.lens import Lens
from .steering import Steering


@dataclass(frozen=True, eq=False)
class GivenVectors(Steering):
    """x + α v with vectors from another tool's file: read by `load_edit`.

    At strength 1 it is what the tool does with the file at its own defaults.
    """

    kind: ClassVar[str] = "given-vectors edit"

    def check_model(self, model: Any) -> None:
        """Refuse also a model with a norm between a module's output, where the tool adds, and the residual stream.

        Raises:
            MismatchError, UnsupportedModelError: as for any edit, or the model has such a norm.
        """
        super().check_model(model)
        lens = Lens.of(model)
        if behind := [layer for layer in self.layers if lens.norm_behind(self.site, layer)]:
            raise UnsupportedModelError(
                f"model {lens.name!r} has a norm behind what its layers {behind} have at {self.site!r}: the tool of "
                "this file adds in front of the norm, and sea_lens behind it"
            )


def given_vectors(
    path: str | os.PathLike[str],
    tool: str,
    site: str,
    found: Mapping[Any, Any],
    *,
    scales: Mapping[Any, float] | None = None,
    model: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> GivenVectors:
    """The edit of one vector for each layer, at all positions.

    Args:
        path: the file.
        tool: whose format it is in.
        site: where the tool adds.
        found: the vector of each layer, as the file has it.
        scales: what the file multiplies each of them by.
        model: what the file says of its model.
        more: what else the file says; JSON values.

    Raises:
        ValueError: a layer that is no index of one, or vectors that are not all of one length.
    """
    vectors = {}
    for layer, value in found.items():
        if type(layer) is not int or layer < 0:
            raise ValueError(f"its layer {layer!r} is no layer counted from 0, and it does not say how many there are")
        vector = as_floats(value, f"the vector of layer {layer}")
        if vector.ndim == 0 or vector.numel() != vector.shape[-1]:
            raise ValueError(f"the vector of layer {layer} has shape {tuple(vector.shape)}: expected one axis")
        vectors[layer] = _unit(vector) * (1.0 if scales is None else scales[layer])
    if len({vector.shape for vector in vectors.values()}) != 1:
        lengths = {layer: vector.shape[-1] for layer, vector in sorted(vectors.items())}
        raise ValueError(f"its vectors have lengths {lengths}: expected one for each layer, all of one length")
    about = {"source": {"file": os.fspath(path), "format": tool, **(more or {})}, "versions": versions()}
    width = vectors[next(iter(vectors))].shape[-1]
    # Norms take away what centring would have, so that a vector means the same beside weights that are processed.
    described = {"processing": "any", "d_model": width, **(model or {})}
    return GivenVectors(
        site, dict(sorted(vectors.items())), None, {**about, "model": described}, defaults=Defaults(positions="all")
    )


def _unit(vector: Float64[Tensor, "..."]) -> Float64[Tensor, "1 d"]:
    return rearrange(vector.reshape(-1), "d -> 1 d")
