"""The subspaces that an edit keeps and drops, from the singular value decomposition of Ω (docs/method.md 2).

Tensors only: nothing here knows of models or files.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ActivationError

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
        keep_values, drop_values: all singular values of Ω⁺ and Ω⁻, descending, float64; 0 where they are rounding.
        centre: mean of φ(neutral) that the edit is affine about; None for the uncentred edit.
    """

    keep: Float[Tensor, "units d k_keep"]
    drop: Float[Tensor, "units d k_drop"]
    keep_rank: Int[Tensor, " units"]
    drop_rank: Int[Tensor, " units"]
    keep_values: Float[Tensor, "units d"]
    drop_values: Float[Tensor, "units d"]
    centre: Float[Tensor, "units d"] | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> "Subspaces":
        """The same subspaces, with the factors and the centre cast to a device and dtype."""
        # Contiguous, so that an edit and what is loaded from its file multiply in one order and give the same bits.
        return Subspaces(
            self.keep.to(device, dtype).contiguous(),
            self.drop.to(device, dtype).contiguous(),
            self.keep_rank,
            self.drop_rank,
            self.keep_values,
            self.drop_values,
            None if self.centre is None else self.centre.to(device, dtype),
        )

    def check(self) -> None:
        """Refuse what no fit gives.

        Raises:
            ValueError: shapes that do not belong together, ranks out of range, singular values that are not descending
                sizes, or columns that are not orthonormal and then zero.
        """
        units, d, _ = self.keep.shape
        if self.centre is not None and self.centre.shape != (units, d):
            raise ValueError(f"centre has shape {tuple(self.centre.shape)}")
        for side, factor, ranks, values in (
            ("keep", self.keep, self.keep_rank, self.keep_values),
            ("drop", self.drop, self.drop_rank, self.drop_values),
        ):
            k = factor.shape[-1]
            if not (factor.is_floating_point() and values.is_floating_point()):
                raise ValueError(f"{side} and its values are no floating-point numbers")
            if tuple(factor.shape) != (units, d, k) or ranks.shape != (units,) or values.shape != (units, d):
                raise ValueError(f"{side}, its ranks and its values have shapes that do not belong together")
            if ranks.is_floating_point() or not ((ranks >= 0) & (ranks <= min(k, d))).all():
                raise ValueError(f"{side} has ranks {ranks.tolist()}: expected 0 to {min(k, d)}")
            if not (values >= 0).all() or not (values.diff(dim=-1) <= 0).all():
                raise ValueError(f"the singular values of {side} are not descending sizes")
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
            self.drop, self.keep, self.drop_rank, self.keep_rank, self.drop_values, self.keep_values, self.centre
        )

    def projections(self) -> tuple[Float[Tensor, "units d d"], Float[Tensor, "units d d"]]:
        """(P⁺, P⁻) of each unit as full matrices: P⁺ = U⁺U⁺ᵀ and P⁻ = I − U⁻U⁻ᵀ."""
        pattern = "units i k, units j k -> units i j"
        identity = torch.eye(self.keep.shape[1], dtype=self.keep.dtype, device=self.keep.device)
        return einsum(self.keep, self.keep, pattern), identity - einsum(self.drop, self.drop, pattern)


def leading_subspace(
    omega: Float[Tensor, "units d d"],
    ranks_of: Callable[[Float[Tensor, "units d"]], Int[Tensor, " units"]],
    floor: Float[Tensor, " units"] | None = None,
    rounding: float = 0.0,
    *,
    may_be_empty: bool = False,
) -> tuple[Float[Tensor, "units d k"], Int[Tensor, " units"], Float[Tensor, "units d"]]:
    """Leading left singular vectors of Ω, their number, and all singular values.

    Args:
        omega: cross-covariance of each unit.
        ranks_of: how many are taken, given the singular values (`ranks.Size.ranks`); at most the numerical rank is.
        floor: singular values up to here are the rounding of what was summed up.
        rounding: and so are those up to this share of the largest.
        may_be_empty: whether a unit whose Ω is zero up to rounding has no direction, and is not refused.

    Raises:
        ActivationError: Ω has overflowed, or is zero up to rounding, so that no direction has any energy.
    """
    if not torch.isfinite(omega).all():
        raise ActivationError("the cross-covariance overflows: these activations are too large to fit from")
    left, values, _ = torch.linalg.svd(omega)
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
    ranks = torch.minimum(ranks_of(values), above.sum(-1).cpu())
    widest = int(ranks.max())
    inside = rearrange(torch.arange(widest), "k -> 1 k") < rearrange(ranks, "units -> units 1")
    return left[:, :, :widest] * rearrange(inside, "units k -> units 1 k").to(left), ranks, values


def random_subspaces(like: Subspaces, generator: torch.Generator) -> Subspaces:
    """Subspaces of the same ranks whose directions are drawn uniformly: the control of docs/method.md 6.8."""
    factors = []
    for factor, ranks in ((like.keep, like.keep_rank), (like.drop, like.drop_rank)):
        gaussian = torch.randn(factor.shape, generator=generator, dtype=factor.dtype)
        orthonormal = torch.linalg.qr(gaussian).Q
        columns = torch.arange(factor.shape[-1])
        inside = rearrange(columns, "k -> 1 1 k") < rearrange(ranks, "units -> units 1 1")
        factors.append((orthonormal * inside).to(factor.device))
    return Subspaces(
        factors[0], factors[1], like.keep_rank, like.drop_rank, like.keep_values, like.drop_values, like.centre
    )
