"""What each singular direction adds to an edited activation (docs/method.md 8.1, 8.2 and 8.3). Tensors only.

With Y⁺ = φ⁻¹(c + U⁺U⁺ᵀ(φ(x) − c)) and Y⁻ = φ⁻¹(φ(x) − U⁻U⁻ᵀ(φ(x) − c)), c the centre or else 0, an edit is

    edited − x = r (Y⁺ + Y⁻) − x
               = Σⱼ r aⱼ (S⁺ ⊙ u⁺ⱼ)  −  Σⱼ r bⱼ (S⁻ ⊙ u⁻ⱼ)  +  (r x̂ − x)  +  r φ⁻¹(c)

with aⱼ = u⁺ⱼᵀ(φ(x) − c), bⱼ = u⁻ⱼᵀ(φ(x) − c), x̂ = φ⁻¹(φ(x)), and r = ‖x‖ / ‖Y⁺ + Y⁻‖, or 1/2 to average. For linear SEA
φ is the identity and the slopes S are 1. A feature map is elementwise; its slope S is the secant of φ⁻¹ between
φ⁻¹(c) and Y⁺, or x̂ and Y⁻, so that the terms of an edit through φ add up just as exactly (the rescale rule of
DeepLIFT, Shrikumar et al. 2017).
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from .arithmetic import ROUNDINGS, combine_projections
from .features import FeatureMap
from .subspaces import Subspaces

Label: TypeAlias = tuple[Any, ...]
"""(layer, side, index), at site `z` (layer, head, side, index)."""

# What the sides are called, of net directions and of singular ones, and the other parts.
SIDES = {"net": {"+": "raised", "-": "lowered"}, "sides": {"+": "U+", "-": "U-"}}
REST = {"norm": "rescaling", "centre": "centre"}


@dataclass(frozen=True)
class Direction:
    """A singular direction, or another part of an edit of one unit.

    Attributes:
        layer: of the edit.
        head: None where the layer is one unit.
        side: "+" for a column of U⁺, "-" for one of U⁻, "norm" or "centre".
        index: of the column, by descending singular value; 0 for the two others.
    """

    layer: int
    head: int | None
    side: str
    index: int

    @staticmethod
    def of(label: tuple[Any, ...]) -> "Direction":
        """The direction that a label (layer, side, index), or (layer, head, side, index), names."""
        layer, *head, side, index = label
        return Direction(layer, head[0] if head else None, side, index)

    def named(self, basis: str) -> str:
        """Its layer, its head, and its side and index, or what it is otherwise."""
        head = "" if self.head is None else f" head {self.head}"
        sides = SIDES[basis]
        what = f"{sides[self.side]}[{self.index}]" if self.side in sides else REST[self.side]
        return f"layer {self.layer}{head} {what}"

    @property
    def unit(self) -> int:
        """Its place among the units of its layer."""
        return 0 if self.head is None else self.head


@dataclass(frozen=True)
class DirectionTerms:
    """The terms that add up to edited − x.

    Attributes:
        keep: r aⱼ of each column of U⁺, zero where `combine` leaves the positive term out.
        drop: −r bⱼ of each column of U⁻, likewise.
        keep_slope, drop_slope: S⁺ and S⁻.
        norm: r x̂ − x, what becomes of the activation itself.
        centre: r φ⁻¹(c).
        subspaces: U⁺ and U⁻.
    """

    keep: Float[Tensor, "*batch units k_keep"]
    drop: Float[Tensor, "*batch units k_drop"]
    keep_slope: Float[Tensor, "*batch units d"]
    drop_slope: Float[Tensor, "*batch units d"]
    norm: Float[Tensor, "*batch units d"]
    centre: Float[Tensor, "*batch units d"]
    subspaces: Subspaces

    def along(
        self, gradient: Float[Tensor, "*batch units d"]
    ) -> tuple[
        Float[Tensor, "*batch units k_keep"],
        Float[Tensor, "*batch units k_drop"],
        Float[Tensor, "*batch units"],
        Float[Tensor, "*batch units"],
    ]:
        """⟨gradient, term⟩ for every column of U⁺, every column of U⁻, the norm and the centre."""
        read = "... units d, units d k -> ... units k"
        return (
            self.keep * einsum(gradient * self.keep_slope, self.subspaces.keep, read),
            self.drop * einsum(gradient * self.drop_slope, self.subspaces.drop, read),
            reduce(gradient * self.norm, "... units d -> ... units", "sum"),
            reduce(gradient * self.centre, "... units d -> ... units", "sum"),
        )


def direction_terms(
    x: Float[Tensor, "*batch units d"], subspaces: Subspaces, feature: FeatureMap, combine: str
) -> DirectionTerms:
    """Take an edit apart; x in float32 or float64, subspaces in the same dtype.

    Where y vanishes, so that the edit leaves x as it is, every term is zero.
    """
    if combine == "reverse":
        # U⁺ and U⁻ keep their names and swap their roles.
        swapped = direction_terms(x, subspaces.reversed(), feature, "norm")
        return DirectionTerms(
            swapped.drop, swapped.keep, swapped.drop_slope, swapped.keep_slope, swapped.norm, swapped.centre, subspaces
        )
    has_keep, has_drop = float(combine != "negative_only"), float(combine != "positive_only")
    mapped = feature.forward(x)
    centre = torch.zeros_like(mapped) if subspaces.centre is None else subspaces.centre.expand_as(mapped)
    read, write = "... units d, units d k -> ... units k", "... units k, units d k -> ... units d"
    kept = einsum(mapped - centre, subspaces.keep, read)
    dropped = einsum(mapped - centre, subspaces.drop, read)
    keep_slope, origin = _secant(feature, centre, einsum(kept, subspaces.keep, write), x)
    drop_slope, back = _secant(feature, mapped, -einsum(dropped, subspaces.drop, write), x)

    r = _ratio(x, subspaces, feature, combine)
    changed = r != 0
    return DirectionTerms(
        has_keep * r * kept,
        -has_drop * r * dropped,
        keep_slope,
        drop_slope,
        torch.where(changed, has_drop * r * back - x, 0.0),
        has_keep * r * origin,
        subspaces,
    )


def _secant(
    feature: FeatureMap, start: Tensor, step: Tensor, x: Float[Tensor, "*batch units d"]
) -> tuple[Float[Tensor, "*batch units d"], Float[Tensor, "*batch units d"]]:
    """Slope of φ⁻¹ between start and start + step, clamping included, and φ⁻¹(start)."""
    if feature.is_identity:
        return torch.ones_like(step), start
    base = feature.invert(start, x)
    rise = feature.invert(start + step, x) - base
    still = step == 0
    return torch.where(still, 0.0, rise / torch.where(still, 1.0, step)), base


def _ratio(
    x: Float[Tensor, "*batch units d"], subspaces: Subspaces, feature: FeatureMap, combine: str
) -> Float[Tensor, "*batch units 1"]:
    """r, by which Y⁺ + Y⁻ (or the one of them that counts) is multiplied; 0 where y vanishes."""
    y, back = combine_projections(x, subspaces, feature, combine)
    # combine_projections halves the sum of two terms, and gives one alone as it is.
    half = 1.0 if combine in ("positive_only", "negative_only") else 0.5
    if combine == "average":
        return torch.full_like(x[..., :1], half)
    x_norm, y_norm, back_norm = (z.norm(dim=-1, keepdim=True) for z in (x, y, back))
    vanished = y_norm <= ROUNDINGS * torch.finfo(x.dtype).eps * back_norm
    return torch.where(vanished, 0.0, half * x_norm / torch.where(vanished, 1.0, y_norm))
