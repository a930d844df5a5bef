"""Keep against drop by generalised eigenvectors (docs/method.md 5.9): M⁺ u = λ M⁻ u, with M± = Ω± (Ω±)ᵀ.

λ is how much a component uᵀx of the neutral activation goes together with the positive activations, over how much it
does with the negative ones. The components of the smallest λ are taken out. Two matrices are compared in this way by
common spatial patterns (Fukunaga, Koontz 1970; Koles 1991), with the covariances of two classes as the matrices.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, SupportsFloat, SupportsIndex

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from .._support.arguments import as_integer, as_number
from .._support.saturation import saturate
from .._support.versions import versions
from ..edits.activation import Arithmetic
from ..edits.foldable import SavedActivationEdit
from ..edits.saved import check_units, grouped_by_layer, require
from ..edits.where import Defaults
from ..errors import ActivationError, InputError, SeaLensWarning
from ..spectral.covariance import CrossCovariance
from ..spectral.layer_statistics import LayerStatistics
from .feature_directions import place, refuse_other_statistics
from .finite_steps import mapped, step

# A ratio counts as one up to this: directions of which the demonstrations say nothing have it up to rounding.
MARGIN = 1e-8
# How far a file may be from what is exact.
EXACT = 1e-4
# Up to this share of the means an Ω about them is the rounding of float32 activations (docs/method.md 2.4).
_ROUNDING = float(torch.finfo(torch.float32).eps) ** 2


@dataclass(frozen=True)
class Ratios:
    """Generalised eigenvectors at both ends, for each unit of a layer; float64.

    Columns beyond what a unit has are zero, with ratio 1.

    Attributes:
        filters: u of the smallest ratios, ascending; of length one.
        patterns: what measuring by a filter answers to: M⁻ u, scaled so that filtersᵀ patterns is the identity.
        ratios: λ of these filters, below 1.
        opposite: u of the largest ratios, descending; of length one.
        opposite_ratios: λ of these, above 1.
        centre: mean neutral activation of a centred fit, else zero.
    """

    filters: Float[Tensor, "units d k"]
    patterns: Float[Tensor, "units d k"]
    ratios: Float[Tensor, "units k"]
    opposite: Float[Tensor, "units d k"]
    opposite_ratios: Float[Tensor, "units k"]
    centre: Float[Tensor, "units d"]


_TENSORS = tuple(Ratios.__annotations__)


@dataclass(frozen=True, eq=False)
class GeneralisedEigen(SavedActivationEdit):
    """x − α P (x − c): made by `generalised_eigen`.

    Ways to combine: "drop" takes the filters' components out by the orthogonal projection, which moves an activation
    least; "oblique" takes them out along the patterns, which leaves the components of all other eigenvectors as they
    are; "reverse" drops the components of the largest ratios, as a control.

    Attributes:
        site: where it acts.
        eigenvectors: of each layer.
    """

    combines: ClassVar[tuple[str, ...]] = ("drop", "oblique", "reverse")
    kind: ClassVar[str] = "generalised-eigenvector edit"

    site: str
    eigenvectors: Mapping[int, Ratios]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    defaults: Defaults = field(default=Defaults(), kw_only=True, repr=False)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.eigenvectors))

    @property
    def shape(self) -> tuple[int, int]:
        units, d, _ = self.eigenvectors[self.layers[0]].filters.shape
        return units, d

    @property
    def ranks(self) -> dict[Any, int]:
        """How many components are taken out, by layer, or by (layer, head) at site `z`."""
        found: dict[Any, int] = {}
        for layer in self.layers:
            counts = _there(self.eigenvectors[layer].filters).sum(-1).tolist()
            found |= dict(zip(self.unit_keys(layer), counts, strict=True))
        return found

    def arithmetic(self, layer: int, combine: str) -> Arithmetic:
        one = self.eigenvectors[layer]
        if combine == "oblique":
            right, left = one.filters, one.patterns
        else:
            right = left = orthonormal(one.opposite if combine == "reverse" else one.filters)

        def edited(x: Tensor, strength: float | int | Tensor) -> Tensor:
            return step(x, -mapped(saturate(x - one.centre.to(x)), right, left), strength)

        return edited

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"layers.{layer}.{name}": getattr(one, name)
            for layer, one in self.eigenvectors.items()
            for name in _TENSORS
        }

    def facts(self) -> dict[str, Any]:
        return {"site": self.site}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> "GeneralisedEigen":
        found = {layer: Ratios(**named) for layer, named in grouped_by_layer(tensors).items()}
        return cls(header["site"], found, header["provenance"])

    def check_content(self) -> None:
        shapes = {layer: tuple(one.centre.shape) for layer, one in self.eigenvectors.items()}
        check_units(self.site, shapes, self.provenance)
        for layer, one in self.eigenvectors.items():
            try:
                _check(one)
            except ValueError as error:
                raise ValueError(f"layer {layer}: {error}") from None

    def __repr__(self) -> str:
        return f"GeneralisedEigen(site={self.site!r}, layers={list(self.layers)})"


def generalised_eigen(
    covariance: CrossCovariance, rank: SupportsIndex = 4, shrinkage: SupportsFloat = 0.1, centre: bool = True
) -> GeneralisedEigen:
    """Take out what goes together with the negatives and least with the positives, from captured statistics.

    A spectral fit finds what is to be kept and what is to be dropped apart from each other; here the two are compared
    direction by direction. Both M± are brought to trace d, and to (1 − shrinkage) M + shrinkage I.

    Args:
        covariance: from `capture`, with the identity as its feature map.
        rank: how many components are taken out of each unit, those of the smallest ratios.
        shrinkage: towards the identity, at least 0 and below 1. The smaller it is, the more a ratio may rest on
            directions in which hardly anything varies; at 0 the negative side must have full rank.
        centre: Ω about the sample means (docs/method.md 2.3), and the edit about the neutral one.

    Returns:
        The edit, for every layer captured. Time: d³ for each unit.

    Raises:
        InputError: no statistics, the activations went through a feature map, or a rank or shrinkage out of range.
        ActivationError: no demonstrations, an Ω that is zero or overflows, a negative side that is singular, or no
            ratio below 1; names the layer and the head.

    Warns:
        UserWarning: fewer ratios than `rank` are below 1 in some unit, and only these components are taken out.

    Example:
        >>> edit = sl.generalised_eigen(sl.capture(bed.model, bed.demonstrations), rank=3)
        >>> edit.ranks
        {0: 3, 1: 3, 2: 3}
    """
    refuse_other_statistics(covariance, "generalised_eigen")
    k, share = as_integer(rank, "rank", least=1), as_number(shrinkage, "shrinkage", least=0.0)
    if share >= 1:
        raise InputError(f"shrinkage {share:g}: expected a number below 1")
    if k > covariance.d:
        raise InputError(f"rank {k}: the activations are {covariance.d} wide")
    found = {layer: _fitted(covariance, layer, k, share, bool(centre)) for layer in covariance.layers}
    provenance = {**covariance.provenance, "rank": k, "shrinkage": share, "centre": bool(centre)}
    edit = GeneralisedEigen(covariance.site, found, {**provenance, "versions": versions()})
    below = [f"{key}: {count}" for key, count in edit.ranks.items() if count < k]
    if below:
        told = ", ".join(below[:4]) + (", …" if len(below) > 4 else "")
        warnings.warn(f"of rank {k} only so many components have a ratio below 1: {told}", SeaLensWarning, stacklevel=2)
    return edit


def _fitted(covariance: CrossCovariance, layer: int, k: int, shrinkage: float, centre: bool) -> Ratios:
    statistics = covariance.at(layer)
    means = statistics.means
    sides = [_compared(statistics, covariance, layer, side, shrinkage, centre) for side in (0, 1)]
    ends: list[list[Tensor]] = []
    for unit in range(covariance.units):
        try:
            values, vectors = solve(sides[0][unit], sides[1][unit])
        except ActivationError as error:
            raise ActivationError(f"{place(covariance, layer, unit)}: {error}") from error
        if not values[0] < 1 - MARGIN:
            raise ActivationError(
                f"{place(covariance, layer, unit)}: no direction goes together with the negatives more than with the "
                f"positives"
            )
        low, high = values[:k], values.flip(0)[:k]
        few, many = (low < 1 - MARGIN).to(vectors), (high > 1 + MARGIN).to(vectors)
        filters, opposite = vectors[:, :k] * few, vectors.flip(1)[:, :k] * many
        patterns = sides[1][unit] @ filters
        # Solved for uᵀ M⁻ u = 1, so that measuring a pattern by its filter gives one whatever their lengths are.
        sizes = torch.where(few > 0, filters.norm(dim=0), 1.0)
        ends.append(
            [
                filters / sizes,
                patterns * sizes,
                torch.where(few > 0, low, 1.0),
                opposite / torch.where(many > 0, opposite.norm(dim=0), 1.0),
                torch.where(many > 0, high, 1.0),
            ]
        )
    neutral = means.neutral.cpu() if centre else torch.zeros_like(means.neutral, device="cpu")
    return Ratios(*(torch.stack(parts).contiguous() for parts in zip(*ends, strict=True)), centre=neutral)


def _compared(
    statistics: LayerStatistics, covariance: CrossCovariance, layer: int, side: int, shrinkage: float, centre: bool
) -> Float[Tensor, "units d d"]:
    """M of one side at trace d, shrunk towards the identity."""
    omega, means = statistics.omega(side, centre=centre).cpu(), statistics.means
    sizes = omega.abs().amax((-2, -1))
    rounding = max(covariance.n, covariance.d) * _ROUNDING * means[0].norm(dim=-1) * means[1 + side].norm(dim=-1)
    limits = rounding.cpu() if centre else torch.zeros_like(sizes)
    for unit, (size, limit) in enumerate(zip(sizes.tolist(), limits.tolist(), strict=True)):
        if not limit < size < torch.inf:
            raise ActivationError(
                f"{place(covariance, layer, unit)}: the cross-covariance with the {('positive', 'negative')[side]} "
                f"activations is zero up to rounding, or not finite"
            )
    unit_omega = omega / sizes[:, None, None]
    squared = einsum(unit_omega, unit_omega, "units i k, units j k -> units i j")
    trace = einsum(squared, "units i i -> units")
    identity = torch.eye(covariance.d, dtype=torch.float64)
    return (1 - shrinkage) * squared * (covariance.d / trace)[:, None, None] + shrinkage * identity


def solve(above: Float[Tensor, "d d"], below: Float[Tensor, "d d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """λ, ascending, and u as columns of `above` u = λ `below` u, with uᵀ `below` u = 1.

    The entry of largest modulus of each u is positive.

    Raises:
        ActivationError: `below` is singular, or so nearly that the vectors are not what they should be.
    """
    # Imported here, since importing it takes about as long as importing much of sea_lens.
    from scipy.linalg import LinAlgError, eigh

    singular = "the negative side of the ratios is singular: expected a shrinkage above 0, or more demonstrations"
    try:
        values, vectors = eigh(above.numpy(), below.numpy())
    except LinAlgError as error:
        raise ActivationError(singular) from error
    if not np.abs(vectors.T @ below.numpy() @ vectors - np.eye(len(values))).max() <= EXACT:
        raise ActivationError(singular)
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], axis=0)
    return torch.from_numpy(values), torch.from_numpy(vectors * np.sign(largest))


def orthonormal(columns: Float[Tensor, "units d k"]) -> Float[Tensor, "units d k"]:
    """An orthonormal basis of what the columns span; zero where they are, which is at the end."""
    return torch.linalg.qr(columns)[0] * _there(columns)[:, None]


def _there(columns: Float[Tensor, "units d k"]) -> Bool[Tensor, "units k"]:
    return columns.abs().amax(-2) > 0


def _check(one: Ratios) -> None:
    """Refuse what is no set of generalised eigenvectors.

    Raises:
        ValueError: saying what does not hold.
    """
    units, d, k = one.filters.shape
    wanted = {"filters": (units, d, k), "patterns": (units, d, k), "opposite": (units, d, k), "centre": (units, d)}
    wanted |= {"ratios": (units, k), "opposite_ratios": (units, k)}
    for name, shape in wanted.items():
        tensor = getattr(one, name)
        fits = tuple(tensor.shape) == shape and tensor.dtype == torch.float64
        require(fits, f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, expected {shape}")
    require(1 <= k <= d, f"it has {k} filters of {d} numbers")
    for columns, ratios, sign in ((one.filters, one.ratios, 1), (one.opposite, one.opposite_ratios, -1)):
        there = _there(columns)
        require(bool((there.long().diff(dim=-1) <= 0).all()), "an empty column comes before one that is not")
        lengths = (columns.norm(dim=-2) - there.to(columns)).abs().max()
        require(float(lengths) <= EXACT, f"a filter has not length one (off by {float(lengths):.1e})")
        apart, order = sign * (1 - ratios), sign * ratios.diff(dim=-1)
        require(bool((ratios >= 0).all()) and bool(((apart > 0) == there).all()), "a ratio is on the wrong side of one")
        require(bool((order >= 0).all()), "its ratios are not in order")
    found = einsum(one.filters, one.patterns, "units d i, units d j -> units i j")
    identity = torch.diag_embed(_there(one.filters).to(found))
    off = float((found - identity).abs().max())
    require(off <= EXACT, f"taking out its components is no projection (off by {off:.1e})")
    require(bool(_there(one.filters)[:, 0].all()), "a unit has no filter")
    require(float(one.patterns.abs().max()) <= 1e12, "a pattern is too large")
    require(float(one.centre.abs().max()) <= 1e30, "its centre is too large to be an activation")
