"""In which directions an edit is taken apart, and what the parts are called (docs/method.md 8.1 and 8.5)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from ..edits.base import Edit
from ..errors import InputError
from ..spectral.direction_terms import Direction, DirectionTerms, Label, direction_terms
from ..spectral.edit import SpectralEdit
from ..spectral.net import eigenvalue_sizes, net_subspaces, planes
from ..spectral.subspaces import Subspaces

BASES = ("net", "sides")
ONE_SIDED = ("positive_only", "negative_only")


def spectral_edit(edit: Edit) -> SpectralEdit:
    """The edit, which must be a spectral one.

    Raises:
        InputError: it is not.
    """
    if not isinstance(edit, SpectralEdit):
        raise InputError(f"only a spectral edit has singular directions, got {type(edit).__name__}")
    return edit


def chosen_basis(edit: Edit, combine: str, basis: str | None) -> str:
    """One of `BASES`: by default "net" where both sides of a linear edit are combined.

    Raises:
        InputError: an unknown basis, or "net" for an edit through a feature map.
    """
    linear = spectral_edit(edit).feature.is_identity
    if basis is None:
        return "net" if linear and combine not in ONE_SIDED else "sides"
    if basis not in BASES:
        raise InputError(f"unknown basis {basis!r}: expected one of {', '.join(BASES)}")
    if basis == "net" and not linear:
        raise InputError(
            f"basis 'net': an edit through {spectral_edit(edit).feature.name!r} adds no symmetric matrix times the "
            f"activation, so that it has no net directions: expected basis='sides'"
        )
    return basis


@dataclass(frozen=True)
class Part:
    """A direction, or several that have one eigenvalue together.

    Attributes:
        label: (layer, side, index), at site `z` (layer, head, side, index).
        unit: its place among the units of its layer.
        kept: whether its columns are those of `keep`.
        first, n: its columns.
        eigenvalue: in the basis "net"; mean of its columns'.
    """

    label: Label
    unit: int
    kept: bool
    first: int
    n: int = 1
    eigenvalue: float | None = None

    @property
    def columns(self) -> slice:
        """Its columns."""
        return slice(self.first, self.first + self.n)


@dataclass(frozen=True, eq=False)
class DirectionParts:
    """An edit, taken apart in one basis.

    Attributes:
        edit: the edit.
        combine: how it is applied.
        basis: one of `BASES`.
    """

    edit: SpectralEdit
    combine: str
    basis: str
    _factors: dict[int, tuple[Subspaces, str]] = field(default_factory=dict, repr=False)

    def factors(self, layer: int) -> tuple[Subspaces, str]:
        """The two factors of a layer in this basis, and how they are combined."""
        if layer not in self._factors:
            given = self.edit.subspaces[layer], self.combine
            self._factors[layer] = net_subspaces(*given) if self.basis == "net" else given
        return self._factors[layer]

    @property
    def has_centre(self) -> bool:
        """Whether the edit adds a constant: uncentred, the identity adds none; φ⁻¹(0) of another map need not be 0."""
        return bool(self.edit.options.get("centre", False)) or not self.edit.feature.is_identity

    def terms(self, x: Float[Tensor, "*batch units d"], layer: int) -> DirectionTerms:
        """What each column of the factors adds to activations, float32 or float64."""
        subspaces, combine = self.factors(layer)
        return direction_terms(x, subspaces.to(x.device, x.dtype), self.edit.feature, combine)

    def most_alike(self, labels: Sequence[Label]) -> dict[str, Any]:
        """Which two of these directions share most of their direction, and the share: the largest cos² between them.

        Nothing at site `z`, where heads have spaces of their own, and of fewer than two directions.
        """
        if self.edit.at.per_head or len(labels) < 2:
            return {}
        bases = {}
        for label in labels:
            (part,) = [one for one in self.parts(Direction.of(label).layer) if one.label == label]
            factors, _ = self.factors(Direction.of(label).layer)
            columns = (factors.keep if part.kept else factors.drop)[part.unit, :, part.columns].double()
            bases[label] = torch.nn.functional.normalize(columns, dim=0)
        shares = {
            pair: torch.linalg.matrix_norm(bases[pair[0]].mT @ bases[pair[1]], 2).square().item()
            for pair in itertools.combinations(labels, 2)
        }
        pair = max(shares, key=lambda one: shares[one])
        return {"most_alike": list(pair), "most_alike_share": shares[pair]}

    def parts(self, layer: int) -> list[Part]:
        """The directions of a layer, unit by unit."""
        subspaces, _ = self.factors(layer)
        found = []
        for unit in range(len(subspaces.keep)):
            place = self.edit.at.place(layer, unit)
            for kept, factor, ranks in (
                (True, subspaces.keep, subspaces.keep_rank),
                (False, subspaces.drop, subspaces.drop_rank),
            ):
                rank, side = int(ranks[unit]), "+" if kept else "-"
                if self.basis == "sides":
                    found += [Part((*place, side, index), unit, kept, index) for index in range(rank)]
                    continue
                sizes = eigenvalue_sizes(factor[unit : unit + 1, :, :rank])[0]
                sign = 1.0 if kept else -1.0
                for first, n in planes(sizes):
                    eigenvalue = sign * sizes[first : first + n].mean().item()
                    found.append(Part((*place, side, first), unit, kept, first, n, eigenvalue))
        return found


def sums_over_parts(
    along: Sequence[Float[Tensor, "batch pos units _"]], parts: Sequence[Part]
) -> Float[Tensor, "batch parts"]:
    """Sum over positions, and over a part's columns, of what each column of the two factors has.

    0 for a part whose columns the factors do not have.
    """
    keep, drop = (reduce(one, "batch pos units k -> batch units k", "sum") for one in along)
    # What belongs to no part goes to one more, which is left out.
    places = [torch.full(values.shape[1:], len(parts)) for values in (keep, drop)]
    for place, part in enumerate(parts):
        places[0 if part.kept else 1][part.unit, part.columns] = place
    sums = torch.zeros(len(keep), len(parts) + 1, dtype=keep.dtype, device=keep.device)
    for of_columns, values in zip(places, (keep, drop), strict=True):
        sums.index_add_(1, of_columns.flatten().to(values.device), values.flatten(1))
    return sums[:, :-1]
