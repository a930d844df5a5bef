"""Elementwise feature maps φ for Φ-SEA, with their inverses (docs/method.md 4; paper section 3.3).

The spectral projection acts on φ(x); its result may lie outside φ's range and is clamped into it before the inverse.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_several
from .._support.storage import ContentError
from ..errors import InputError


@dataclass(frozen=True)
class FeatureMap:
    """An elementwise map φ with an inverse on its range.

    A map of your own needs a name, two functions and a range:

        >>> cube = sl.FeatureMap("cube", lambda x: x**3, lambda y: y.sign() * y.abs() ** (1 / 3))
        >>> sl.fit(sl.capture(bed.model, bed.demonstrations, feature=cube), rank=12).feature.name
        'cube'

    Attributes:
        name: recorded in everything fitted with the map; loading a saved edit asks for the map again by this name.
        forward: φ, any shape to the same shape, elementwise and differentiable.
        inverse: φ⁻¹ on the range, likewise. Where `carry_sign` holds it returns |x|.
        range: the interval of φ's values; infinite ends are allowed.
        closed: which finite ends of the range the inverse accepts as they are.
        eps: how far inside an open finite end a value is clamped.
        carry_sign: φ forgets the sign of x (φ is even), so the inverse takes the sign of the incoming x.

    Raises:
        InputError: the range is empty once clamped by `eps`.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    range: tuple[float, float] = (-math.inf, math.inf)
    closed: Literal["neither", "left", "right", "both"] = "neither"
    eps: float = 1e-4
    carry_sign: bool = False

    def __post_init__(self) -> None:
        low, high = self.bounds
        if not low < high:
            raise InputError(f"feature {self.name!r}: the range {self.range} is empty once clamped by eps={self.eps}")

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval that values are clamped into: the range, drawn in by `eps` at its open ends."""
        low, high = self.range
        return (
            low if self.closed in ("left", "both") else low + self.eps,
            high if self.closed in ("right", "both") else high - self.eps,
        )

    @property
    def record(self) -> dict[str, Any]:
        """What a file says of the map: everything but its two functions."""
        low, high = (end if math.isfinite(end) else None for end in self.range)
        kept = {name: getattr(self, name) for name in ("name", "closed", "eps", "carry_sign")}
        return kept | {"range": [low, high]}

    @property
    def is_identity(self) -> bool:
        """Whether φ(x) = x, so that the edit is linear."""
        return self.name == "identity"

    def clamp(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Clamp values into the range that the inverse accepts."""
        low, high = self.bounds
        return y if math.isinf(low) and math.isinf(high) else y.clamp(low, high)

    def invert(self, y: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """φ⁻¹(y) after clamping; where φ forgets the sign, with the sign of `x`, the activation that was mapped."""
        inverted = self.inverse(self.clamp(y))
        return inverted * x.sign() if self.carry_sign else inverted


# Functions with names, so that an edit can be pickled, as a pool of processes does.
def _identity(x: Tensor) -> Tensor:
    return x


def _squared_exponential(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2)


def _tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


def _atanh(y: Tensor) -> Tensor:
    return torch.atanh(y)


def _sqrt_minus_two_log(y: Tensor) -> Tensor:
    # sqrt has an infinite slope at 0 (y = 1), which would turn into NaN in a backward pass; there the slope is cut to
    # 0 by taking the root of a constant instead.
    squared = -2.0 * y.log()
    at_zero = squared <= 0
    return torch.where(at_zero, 0.0, torch.where(at_zero, 1.0, squared).sqrt())


def _elu_inverse(y: Tensor) -> Tensor:
    # The unused branch of torch.where must stay finite too, or its gradient poisons the used one.
    return torch.where(y >= 0, y, torch.log1p(y.clamp(max=0.0)))


def _elu(x: Tensor) -> Tensor:
    return torch.where(x >= 0, x, torch.expm1(x.clamp(max=0.0)))


FEATURE_MAPS: dict[str, FeatureMap] = {
    feature.name: feature
    for feature in (
        FeatureMap("identity", _identity, _identity),
        FeatureMap(
            "squared_exponential",
            _squared_exponential,
            _sqrt_minus_two_log,
            range=(0.0, 1.0),
            closed="right",
            carry_sign=True,
        ),
        FeatureMap("tanh", _tanh, _atanh, range=(-1.0, 1.0)),
        FeatureMap("elu", _elu, _elu_inverse, range=(-1.0, math.inf)),
    )
}


def feature_map(feature: str | FeatureMap) -> FeatureMap:
    """The feature map of this name, or the given map itself.

    Raises:
        InputError: the name is not one of `FEATURE_MAPS`, or is one of them but the map is another.
    """
    if isinstance(feature, FeatureMap):
        known = FEATURE_MAPS.get(feature.name)
        if known is not None and (feature.forward, feature.inverse) != (known.forward, known.inverse):
            raise InputError(f"feature {feature.name!r} is the name of a map that sea_lens has: give yours another")
        return feature
    if not isinstance(feature, str) or feature not in FEATURE_MAPS:
        known = ", ".join(FEATURE_MAPS)
        raise InputError(f"unknown feature {feature!r}: expected one of {known}, or a sea_lens.FeatureMap")
    return FEATURE_MAPS[feature]


def feature_maps(feature: Any) -> list[FeatureMap]:
    """A feature map or several, each by its name or itself, as they are told apart by their names.

    Raises:
        InputError: one is unknown or has the name of another, or there is none.
    """
    found = [feature_map(one) for one in as_several(feature, "feature", (str, FeatureMap))]
    as_several([one.name for one in found], "feature", str)
    return found


def recorded_feature_map(record: Mapping[str, Any], given: FeatureMap | None) -> FeatureMap:
    """The feature map that a file was made with: a known one, or the user's own, which has to be given again.

    Raises:
        ContentError: the map is not known and none was given, or the one given is another.
    """
    name = record["name"]
    if given is None and name not in FEATURE_MAPS:
        raise ContentError(f"was made with a feature map of the user's own, {name!r}: pass it as feature=")
    found = FEATURE_MAPS[name] if given is None else feature_map(given)
    if given is None:
        eps = record["eps"]
        if type(eps) not in (int, float) or not 0 <= eps < math.inf:
            raise ContentError(f"is damaged: its feature map has eps {eps!r}")
        found = replace(found, eps=eps)
    different = [key for key, value in found.record.items() if value != record[key]]
    if different:
        key = different[0]
        raise ContentError(f"was made with a feature map of {key} {record[key]!r}, got {found.record[key]!r}")
    return found
