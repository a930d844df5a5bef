"""The subspaces that an edit keeps and drops, from the singular value decomposition of Ω (docs/method.md 2).

Tensors only: nothing here knows of models or files.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ActivationError
from .products import Product
from .singular import Ranks, Spectrum, leading

# How far the columns of a factor may be from orthonormal.
ORTHONORMAL = 1e-6
# Random vectors that this is looked at with.
PROBES = 4


@dataclass(frozen=True, eq=False)
class Subspaces:
    """Kept and dropped subspaces of one layer, one pair for each unit, in factored form.

    Ranks may differ between units: `keep` and `drop` are padded on the right with zero columns, which project to
    nothing.

    Attributes:
        keep: U⁺, orthonormal columns then zeros, float64.
        drop: U⁻, likewise.
        keep_rank, drop_rank: k⁺ and k⁻ of each unit.
        keep_values, drop_values: singular values of Ω⁺ and Ω⁻, descending, float64: as many as the widest factor has
            columns at least; 0 where they are rounding.
        keep_energy, drop_energy: sum of all squared singular values over the largest square (docs/method.md 2.4).
        centre: mean of φ(neutral) that the edit is affine about; None for the uncentred edit.
    """

    keep: Float[Tensor, "units d k_keep"]
    drop: Float[Tensor, "units d k_drop"]
    keep_rank: Int[Tensor, " units"]
    drop_rank: Int[Tensor, " units"]
    keep_values: Float[Tensor, "units m_keep"]
    drop_values: Float[Tensor, "units m_drop"]
    keep_energy: Float[Tensor, " units"]
    drop_energy: Float[Tensor, " units"]
    centre: Float[Tensor, "units d"] | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Subspaces":
        """The same subspaces, with the factors and the centre cast to a device and dtype."""
        # Contiguous, so that an edit and what is loaded from its file multiply in one order and give the same bits.
        return replace(
            self,
            keep=self.keep.to(device, dtype).contiguous(),
            drop=self.drop.to(device, dtype).contiguous(),
            centre=None if self.centre is None else self.centre.to(device, dtype),
        )

    @classmethod
    def of(cls, keep: "Side", drop: "Side", centre: Float[Tensor, "units d"] | None = None) -> "Subspaces":
        """The two subspaces that were found."""
        return cls(
            keep.factor,
            drop.factor,
            keep.ranks,
            drop.ranks,
            keep.spectrum.values,
            drop.spectrum.values,
            keep.spectrum.energy,
            drop.spectrum.energy,
            centre,
        )

    @property
    def spectra(self) -> tuple[Spectrum, Spectrum]:
        """Of Ω⁺ and Ω⁻."""
        return Spectrum(self.keep_values, self.keep_energy), Spectrum(self.drop_values, self.drop_energy)

    def check(self) -> None:
        """Refuse what no fit gives.

        Raises:
            ValueError: shapes that do not belong together, ranks out of range, singular values that are not descending
                sizes, or columns that are not orthonormal and then zero.
        """
        units, d, _ = self.keep.shape
        if self.centre is not None and self.centre.shape != (units, d):
            raise ValueError(f"centre has shape {tuple(self.centre.shape)}")
        for side, factor, ranks, spectrum in (
            ("keep", self.keep, self.keep_rank, self.spectra[0]),
            ("drop", self.drop, self.drop_rank, self.spectra[1]),
        ):
            k, values, energy = factor.shape[-1], spectrum.values, spectrum.energy
            if not (factor.is_floating_point() and values.is_floating_point() and energy.is_floating_point()):
                raise ValueError(f"{side} and its values are no floating-point numbers")
            fits = values.shape[0] == units and k <= values.shape[1] <= d and energy.shape == (units,)
            if tuple(factor.shape) != (units, d, k) or ranks.shape != (units,) or not fits:
                raise ValueError(f"{side}, its ranks and its values have shapes that do not belong together")
            if ranks.is_floating_point() or not ((ranks >= 0) & (ranks <= min(k, d))).all():
                raise ValueError(f"{side} has ranks {ranks.tolist()}: expected 0 to {min(k, d)}")
            if not (values >= 0).all() or not (values.diff(dim=-1) <= 0).all():
                raise ValueError(f"the singular values of {side} are not descending sizes")
            if not (energy >= Spectrum.whole(values).energy * (1 - ORTHONORMAL)).all():
                raise ValueError(f"the energy of {side} is less than that of the singular values")
            # UᵀU v = v for the columns that count, at the cost of two thin products instead of UᵀU.
            inside = rearrange(torch.arange(k) < ranks.cpu()[:, None], "units k -> units k 1").to(factor)
            probes = torch.randn(k, PROBES, generator=torch.Generator().manual_seed(0), dtype=factor.dtype)
            probes = probes.to(factor.device)
            error = (factor.mT @ (factor @ probes) - inside * probes).abs()
            if error.numel() and not error.max() <= ORTHONORMAL:
                raise ValueError(f"the columns of {side} are not orthonormal (off by {error.max():.1e})")

    def reversed(self) -> "Subspaces":
        """Positive and negative with their roles swapped."""
        return Subspaces(
            self.drop,
            self.keep,
            self.drop_rank,
            self.keep_rank,
            self.drop_values,
            self.keep_values,
            self.drop_energy,
            self.keep_energy,
            self.centre,
        )

    def projections(self) -> tuple[Float[Tensor, "units d d"], Float[Tensor, "units d d"]]:
        """(P⁺, P⁻) of each unit as full matrices: P⁺ = U⁺U⁺ᵀ and P⁻ = I − U⁻U⁻ᵀ."""
        pattern = "units i k, units j k -> units i j"
        identity = torch.eye(self.keep.shape[1], dtype=self.keep.dtype, device=self.keep.device)
        return einsum(self.keep, self.keep, pattern), identity - einsum(self.drop, self.drop, pattern)


class Side(NamedTuple):
    """One of the two subspaces of a layer.

    Attributes:
        factor: leading left singular vectors of each unit, then zero columns, where they were computed.
        ranks: how many they are, on the CPU.
        spectrum: the singular values, all or the leading ones, on the CPU.
    """

    factor: Float[Tensor, "units d k"]
    ranks: Int[Tensor, " units"]
    spectrum: Spectrum


def leading_subspace(
    product: Product,
    ranks_of: Ranks,
    floor: Float[Tensor, " units"] | None = None,
    rounding: float = 0.0,
    *,
    may_be_empty: bool = False,
    whole: bool = False,
) -> Side:
    """Leading left singular vectors of Ω, and its spectrum (docs/method.md 2.6).

    Args:
        product: the cross-covariance of each unit.
        ranks_of: how many are taken, given the spectrum (`ranks.Size.ranks`); at most the numerical rank is.
        floor: singular values up to here are the rounding of what was summed up.
        rounding: and so are those up to this share of the largest.
        may_be_empty: whether a unit whose Ω is zero up to rounding has no direction, and is not refused.
        whole: compute all singular values, whatever is asked for.

    Raises:
        ActivationError: Ω has overflowed, or is zero up to rounding, so that no direction has any energy.
    """
    if not product.is_finite:
        raise ActivationError("the cross-covariance overflows: these activations are too large to fit from")
    found = None if whole else leading(product, ranks_of)
    if found is None:
        left, scaled = product.decomposition()
        energy = Spectrum.whole(scaled).energy
    else:
        left, (scaled, energy) = found[0], (found[1].values, found[1].energy)
    values = scaled * rearrange(product.scale, "units -> units 1")
    least = rounding * values[:, 0]
    above = values > rearrange(least if floor is None else torch.maximum(least, floor), "units -> units 1")
    if not above[:, 0].all() and not may_be_empty:
        unit = int((~above[:, 0]).nonzero()[0])
        head = f" of head {unit}" if len(values) > 1 else ""
        raise ActivationError(
            f"the cross-covariance{head} is zero: these activations carry nothing to fit from "
            f"(largest singular value {values[unit, 0]:.1e})"
        )
    # The sign of a singular vector is arbitrary and differs between LAPACK builds: make its largest entry positive.
    largest = left.abs().argmax(dim=-2, keepdim=True)
    left = left * left.gather(-2, largest).sign()
    # What lies beyond the numerical rank points wherever rounding does.
    values = values * above
    spectrum = Spectrum.whole(values) if found is None or not above.all() else Spectrum(values, energy)
    ranks = torch.minimum(ranks_of(spectrum), above.sum(-1).cpu())
    widest = int(ranks.max())
    inside = rearrange(torch.arange(widest), "k -> 1 k") < rearrange(ranks, "units -> units 1")
    return Side(left[:, :, :widest] * rearrange(inside, "units k -> units 1 k").to(left), ranks, spectrum.cpu())


def random_subspaces(like: Subspaces, generator: torch.Generator) -> Subspaces:
    """Subspaces of the same ranks whose directions are drawn uniformly: the control of docs/method.md 6.8."""
    factors = []
    for factor, ranks in ((like.keep, like.keep_rank), (like.drop, like.drop_rank)):
        gaussian = torch.randn(factor.shape, generator=generator, dtype=factor.dtype)
        orthonormal = torch.linalg.qr(gaussian).Q
        columns = torch.arange(factor.shape[-1])
        inside = rearrange(columns, "k -> 1 1 k") < rearrange(ranks, "units -> units 1 1")
        factors.append((orthonormal * inside).to(factor.device))
    return replace(like, keep=factors[0], drop=factors[1])
