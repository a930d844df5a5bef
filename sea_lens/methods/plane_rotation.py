"""Angular steering (Vu, Nguyen 2025, arXiv 2510.26243; docs/method.md 5.10): activations are rotated in a plane.

Its first axis is the direction from wanted to unwanted texts. What of an activation lies in the plane is sent to a
given angle from this axis, at its own length; the rest stays.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, SupportsFloat, SupportsIndex

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_number
from .._support.versions import versions
from ..edits.activation import Arithmetic
from ..edits.foldable import SavedActivationEdit
from ..edits.saved import check_units, grouped_by_layer, require
from ..edits.where import Defaults
from ..errors import ActivationError, InputError
from ..models.sites import Site
from ..spectral.arithmetic import length, power_of_two_scale
from ..spectral.covariance import CrossCovariance
from .feature_directions import choose_layer, feature_direction, place, refuse_other_statistics
from .finite_steps import step

PLANES = ("layers", "means")
# How far the axes of a plane may be from orthonormal in a file.
ORTHONORMAL = 1e-6
# What is left of a unit vector beside the first axis must be more than this to be a second one.
_APART = 1e-6


@dataclass(frozen=True)
class Plane:
    """The plane of each unit of a layer by two orthonormal axes; float64.

    Attributes:
        first: from wanted to unwanted texts.
        second: the other axis; angles grow from the first towards it.
    """

    first: Float[Tensor, "units d"]
    second: Float[Tensor, "units d"]


@dataclass(frozen=True, eq=False)
class AngularSteering(SavedActivationEdit):
    """Rotation in a plane: made by `angular_steering`; x + α (rotated(x) − x), whose length is kept at α = 1.

    Ways to combine: "rotate" sends what lies in the plane to the angle; "adaptive" does so only where the component
    along the first axis is positive, so that what has nothing unwanted is left alone; "turn" rotates it by the angle.

    Attributes:
        site: where it acts.
        planes: of each layer.
        angle: in degrees from the first axis towards the second.
    """

    combines: ClassVar[tuple[str, ...]] = ("rotate", "adaptive", "turn")
    kind: ClassVar[str] = "angular-steering edit"

    site: str
    planes: Mapping[int, Plane]
    angle: float
    provenance: Mapping[str, Any] = field(default_factory=dict)
    defaults: Defaults = field(default=Defaults(), kw_only=True, repr=False)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.planes))

    @property
    def shape(self) -> tuple[int, int]:
        units, d = self.planes[self.layers[0]].first.shape
        return units, d

    def with_angle(self, angle: SupportsFloat) -> "AngularSteering":
        """The same planes with another angle, in degrees.

        Raises:
            InputError: it is no finite number.
        """
        return replace(self, angle=as_number(angle, "angle"))

    def arithmetic(self, layer: int, combine: str) -> Arithmetic:
        axes = rearrange([self.planes[layer].first, self.planes[layer].second], "way units d -> units way d")
        cosine, sine = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        target = torch.tensor([cosine, sine], dtype=torch.float64)
        turn = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)

        def edited(x: Tensor, strength: float | int | Tensor) -> Tensor:
            basis, scale = axes.to(x), power_of_two_scale(x)
            found = einsum(x / scale, basis, "... units d, units way d -> ... units way")
            if combine == "turn":
                moved = einsum(turn.to(x), found, "to way, ... units way -> ... units to") - found
            else:
                moved = length(found) * target.to(x) - found
            if combine == "adaptive":
                moved = torch.where(found[..., :1] > 0, moved, 0.0)
            change = einsum(moved, basis, "... units way, units way d -> ... units d") * scale
            return step(x, change, strength)

        return edited

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"layers.{layer}.{name}": getattr(plane, name)
            for layer, plane in self.planes.items()
            for name in ("first", "second")
        }

    def facts(self) -> dict[str, Any]:
        return {"site": self.site, "angle": self.angle}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> "AngularSteering":
        planes = {layer: Plane(**named) for layer, named in grouped_by_layer(tensors).items()}
        return cls(header["site"], planes, header["angle"], header["provenance"])

    def check_content(self) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors().items()}
        check_units(self.site, shapes, self.provenance)
        require(type(self.angle) is float and math.isfinite(self.angle), f"its angle is {self.angle!r}"[:200])
        for layer, plane in self.planes.items():
            require(plane.first.dtype == plane.second.dtype == torch.float64, f"layer {layer}: its numbers are others")
            axes = torch.stack([plane.first, plane.second], -2)
            off = float((einsum(axes, axes, "units a d, units b d -> units a b") - torch.eye(2)).abs().max())
            require(off <= ORTHONORMAL, f"layer {layer}: its axes are not orthonormal (off by {off:.1e})")

    def __repr__(self) -> str:
        return f"AngularSteering(site={self.site!r}, layers={list(self.layers)}, angle={self.angle:g})"


def angular_steering(
    covariance: CrossCovariance,
    angle: SupportsFloat = 180.0,
    layer: SupportsIndex | None = None,
    plane: str = "layers",
) -> AngularSteering:
    """Rotate activations in the plane of unwanted texts, from the same captured statistics as a spectral fit.

    Args:
        covariance: from `capture`, with the identity as its feature map.
        angle: in degrees from the direction from wanted to unwanted texts: 0 gives all that lies in the plane that
            direction, 180 the opposite one, 90 takes it to the second axis.
        layer: whose plane serves all captured layers, as in the paper; None for a first axis of each layer's own.
        plane: where the second axis comes from: "layers", the first principal component of the directions of all
            captured layers, as in the paper; "means", the mean of all positive and negative activations of the layer,
            so that the plane holds both class means. At site "z" only the latter can be had.

    Returns:
        The edit, for every layer captured. `with_angle` gives it at another angle.

    Raises:
        InputError: no statistics, the activations went through a feature map, the angle is not finite, the layer was
            not captured, the plane is unknown, or it needs several layers that share a space.
        ActivationError: no demonstrations, class means that do not differ, or no second axis apart from the first;
            names the layer and the head.

    Example:
        >>> edit = sl.angular_steering(sl.capture(bed.model, bed.demonstrations, site="resid_post"), angle=150)
        >>> edit
        AngularSteering(site='resid_post', layers=[0, 1, 2], angle=150)
    """
    if plane not in PLANES:
        raise InputError(f"unknown plane {plane!r}: expected one of {', '.join(PLANES)}")
    degrees = as_number(angle, "angle")
    refuse_other_statistics(covariance, "angular_steering")
    chosen = choose_layer(covariance, layer)
    if plane == "layers" and (Site.of(covariance.site).per_head or len(covariance.layers) < 2):
        raise InputError(
            f"plane 'layers' needs directions of several layers in one space, got layers {list(covariance.layers)} at "
            f"site {covariance.site!r}: expected plane='means'"
        )
    firsts = {at: feature_direction(covariance, at) for at in covariance.layers}
    component = _component(torch.cat(list(firsts.values()))) if plane == "layers" else None

    def plane_of(at: int) -> Plane:
        means = covariance.at(at).means
        towards = (means.positive + means.negative).cpu() / 2 if component is None else component[None]
        return Plane(firsts[at], _second_axis(covariance, at, firsts[at], towards))

    found = {at: plane_of(at) for at in (covariance.layers if chosen is None else [chosen])}
    planes = {at: found[at if chosen is None else chosen] for at in covariance.layers}
    provenance = {**covariance.provenance, "direction_of_layer": chosen, "plane": plane, "versions": versions()}
    return AngularSteering(covariance.site, planes, degrees, provenance)


def _component(directions: Float[Tensor, "layers d"]) -> Float[Tensor, " d"]:
    """First principal component of unit directions, pointing to where that of the last layer lies.

    Zero where they differ by rounding alone: what a decomposition finds of nothing has no direction.
    """
    deviations = directions - directions.mean(0)
    _, sizes, right = torch.linalg.svd(deviations, full_matrices=False)
    if not sizes[0] > _APART:
        return torch.zeros_like(right[0])
    return right[0] if deviations[-1] @ right[0] >= 0 else -right[0]


def _second_axis(
    covariance: CrossCovariance, layer: int, first: Float[Tensor, "units d"], towards: Float[Tensor, "units d"]
) -> Float[Tensor, "units d"]:
    """The unit vector orthogonal to the first axis that lies in the plane of it and another vector.

    Raises:
        ActivationError: there is none, as the other has no other direction.
    """
    sizes = towards.abs().amax(-1, keepdim=True)
    unit = torch.nn.functional.normalize(towards / torch.where(sizes > 0, sizes, 1.0), dim=-1, eps=1e-300)
    rest = unit
    # Twice, since the first time leaves rounding of the size of what was taken out.
    for _ in range(2):
        rest = rest - einsum(rest, first, "units d, units d -> units")[:, None] * first
    for unit_number, size in enumerate(rest.norm(dim=-1).tolist()):
        if not size > _APART:
            raise ActivationError(
                f"{place(covariance, layer, unit_number)}: there is no second axis of the plane apart from the first"
            )
    return torch.nn.functional.normalize(rest, dim=-1)
