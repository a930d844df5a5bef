"""Directional ablation (Arditi et al. 2024, arXiv 2406.11717; docs/method.md 5.8).

The component of an activation along the direction r from wanted to unwanted texts is taken out, or set to what it is at
the mean of the wanted ones (affine concept editing; Marshall et al. 2024, arXiv 2411.09003).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, SupportsIndex

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from .._support.versions import versions
from ..edits.activation import Arithmetic
from ..edits.foldable import SavedActivationEdit
from ..edits.saved import check_units, grouped_by_layer, require
from ..edits.where import Defaults
from ..spectral.covariance import CrossCovariance
from .feature_directions import choose_layer, feature_direction, refuse_other_statistics
from .finite_steps import mapped, step

# How far from one the length of a direction may be in a file.
UNIT = 1e-6
# Beyond this a component is that of no activation; float32 holds what is computed with it.
LARGEST = 1e30


@dataclass(frozen=True)
class Ablated:
    """What is taken out of the units of a layer; float64.

    Attributes:
        direction: r, of length one.
        wanted: component along r of the mean positive activation.
    """

    direction: Float[Tensor, "units d"]
    wanted: Float[Tensor, " units"]


@dataclass(frozen=True, eq=False)
class DirectionalAblation(SavedActivationEdit):
    """x − α r rᵀ x: made by `directional_ablation`.

    Ways to combine: "ablate" takes out the component along r; "affine" makes it that of the mean positive activation,
    so that the edited activation is x − r rᵀ (x − mean positive).

    Attributes:
        site: where it acts.
        directions: of each layer.
    """

    combines: ClassVar[tuple[str, ...]] = ("ablate", "affine")
    kind: ClassVar[str] = "directional-ablation edit"

    site: str
    directions: Mapping[int, Ablated]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    defaults: Defaults = field(default=Defaults(), kw_only=True, repr=False)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.directions))

    @property
    def shape(self) -> tuple[int, int]:
        units, d = self.directions[self.layers[0]].direction.shape
        return units, d

    def arithmetic(self, layer: int, combine: str) -> Arithmetic:
        one = self.directions[layer]
        column = rearrange(one.direction, "units d -> units d 1")
        # What the component becomes; zero adds nothing.
        target = rearrange(one.wanted, "units -> units 1") * one.direction if combine == "affine" else None

        def edited(x: Tensor, strength: float | int | Tensor) -> Tensor:
            change = -mapped(x, column, column)
            return step(x, change if target is None else change + target.to(x), strength)

        return edited

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"layers.{layer}.{name}": getattr(one, name)
            for layer, one in self.directions.items()
            for name in ("direction", "wanted")
        }

    def facts(self) -> dict[str, Any]:
        return {"site": self.site}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> "DirectionalAblation":
        directions = {layer: Ablated(**named) for layer, named in grouped_by_layer(tensors).items()}
        return cls(header["site"], directions, header["provenance"])

    def check_content(self) -> None:
        shapes = {layer: tuple(one.direction.shape) for layer, one in self.directions.items()}
        check_units(self.site, shapes, self.provenance)
        for layer, one in self.directions.items():
            require(one.direction.dtype == one.wanted.dtype == torch.float64, f"layer {layer}: its numbers are others")
            require(tuple(one.wanted.shape) == self.shape[:1], f"layer {layer}: components of {one.wanted.shape} units")
            off = float((one.direction.norm(dim=-1) - 1).abs().max())
            require(off <= UNIT, f"layer {layer}: a direction has not length one (off by {off:.1e})")
            require(float(one.wanted.abs().max()) <= LARGEST, f"layer {layer}: a component is that of no activation")

    def __repr__(self) -> str:
        return f"DirectionalAblation(site={self.site!r}, layers={list(self.layers)})"


def directional_ablation(covariance: CrossCovariance, layer: SupportsIndex | None = None) -> DirectionalAblation:
    """Take out the direction between the class means, from the same captured statistics as a spectral fit.

    Args:
        covariance: from `capture`, with the identity as its feature map.
        layer: whose direction is taken out in all captured layers, as the paper does with that of one layer; None for
            each layer's own. Layers share a space at every site but "z".

    Returns:
        The edit, for every layer captured. It acts at every position, as in the paper.

    Raises:
        InputError: no statistics, the activations went through a feature map, the layer was not captured, or it is
            asked for at site "z".
        ActivationError: no demonstrations, or class means that do not differ; names the layer and the head.

    Example:
        >>> edit = sl.directional_ablation(sl.capture(bed.model, bed.demonstrations, site="resid_post"), layer=1)
        >>> edit
        DirectionalAblation(site='resid_post', layers=[0, 1, 2])
    """
    refuse_other_statistics(covariance, "directional_ablation")
    chosen = choose_layer(covariance, layer)
    directions = {}
    for at in covariance.layers:
        direction = feature_direction(covariance, at if chosen is None else chosen)
        # Which values the component has in this layer is for this layer's activations to say.
        positive = covariance.at(at).means.positive.cpu()
        directions[at] = Ablated(direction, einsum(direction, positive, "units d, units d -> units"))
    provenance = {**covariance.provenance, "direction_of_layer": chosen, "versions": versions()}
    return DirectionalAblation(covariance.site, directions, provenance)
