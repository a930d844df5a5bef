"""Leading left singular vectors of a cross-covariance, without computing the rest (docs/method.md 2.6).

A blocked Krylov space of Ω Ωᵀ from a random start holds them before it is large; what is read out of it is computed
from Ω itself, and counts only with a residual that is small beside the gap behind it. Where it is not, or where so many
directions are asked for that nothing is saved, the full decomposition is computed. Tensors only.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from .products import Product

# Below this size the full decomposition takes no time to speak of.
SMALL = 256
# Columns of a block, and the share of all directions beyond which the full decomposition is as fast.
_BLOCK, _MOST = 16, 0.5
# Columns by which a Krylov space grows, as a share, before it is looked at again.
_GROWTH = 0.25
# The sine of the angle between what is found and what is sought, as far as a residual can tell.
_ANGLE = 1e-8
# How often what was found is multiplied by Ω, which takes away what rounding of its squares has left.
_TRIES = 3
# Random vectors, and multiplications of them, that look for what the space has left out.
_PROBES, _STEPS = 4, 4


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of one layer and side, all of them or the leading ones.

    Attributes:
        values: descending, float64; 0 where they are rounding.
        energy: sum of all squared singular values over the largest square, also of those that are not in `values`.
    """

    values: Float[Tensor, "units m"]
    energy: Float[Tensor, " units"]

    @classmethod
    def whole(cls, values: Float[Tensor, "units m"]) -> "Spectrum":
        """The spectrum that has these values and no others."""
        shares = values / values[:, :1].clamp(min=torch.finfo(values.dtype).tiny)
        # Added up in the order in which ranks are chosen, so that all of it is all of it to the bit.
        return cls(values, shares.square().cumsum(-1)[:, -1])

    def cpu(self) -> "Spectrum":
        """The same on the CPU, as whoever reads or plots it wants it."""
        return Spectrum(self.values.cpu(), self.energy.cpu())

    def left(self, power: float | int) -> Float[Tensor, "units m"]:
        """Share of the energy that lies beyond each direction (docs/method.md 2.4).

        Where the power is not 2 this is the energy of all directions in `values`.
        """
        cumulative = (self.values / self.values[:, :1]).pow(power).cumsum(-1)
        total = cumulative[:, -1] if power != 2 else torch.maximum(cumulative[:, -1], self.energy)
        return 1 - cumulative / rearrange(total, "units -> units 1")


# How many directions of each unit are taken; more than a spectrum has values where it does not say.
Ranks = Callable[[Spectrum], Int[Tensor, " units"]]


def leading(product: Product, ranks_of: Ranks) -> tuple[Float[Tensor, "units d m"], Spectrum] | None:
    """The leading left singular vectors that `ranks_of` asks for, and a spectrum of as many values.

    Returns:
        None where the full decomposition has to be computed.
    """
    if product.size <= SMALL or len(product.scale) > 1 or not product.coordinates or not product.energy.all():
        return None
    # The small matrices of a Krylov space can be too much for LAPACK where values repeat.
    with contextlib.suppress(torch.linalg.LinAlgError):  # pyright: ignore[reportPrivateImportUsage]
        found = _krylov(product, ranks_of)
        return None if found is None else _checked(product, *found)
    return None


def _krylov(product: Product, ranks_of: Ranks) -> tuple[Float[Tensor, "units c m"], int] | None:
    """Approximate eigenvectors of Ω Ωᵀ in the product's coordinates, some more than are asked for, and how many are."""
    size = product.coordinates
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1, size, _BLOCK, generator=generator, dtype=torch.float64).to(product.energy.device)
    # Vectors lie in rows: they are multiplied, added to and read one beside the other.
    newest = torch.linalg.qr(product.square(start)).Q
    basis = newest.mT
    inner: list[Tensor] = []
    looked_at = 0
    while basis.shape[-2] <= _MOST * size:
        image = product.square(newest)
        inner.append(image.mT @ basis.mT)
        newest, beyond = _beside(basis, image)
        width = basis.shape[-2]
        if width > (1 + _GROWTH) * looked_at:
            looked_at = width
            squares, vectors = _eigenpairs(inner)
            k = max(1, _least_rank(product, squares.sqrt(), ranks_of))
            if k > _MOST * size:
                return None
            if k < width:
                residual = (beyond @ vectors[:, -_BLOCK:, :k]).norm()
                # Squares as small as their rounding grow no better; what is read out of Ω itself may be all the same.
                smallest = width * torch.finfo(squares.dtype).eps * squares[0, 0]
                gap = squares[0, k - 1] - squares[0, k]
                if residual <= torch.maximum(_ANGLE * gap, smallest):
                    if _left_out(product, basis) > squares[0, k] + gap / 2 + smallest:
                        return None
                    # A few more, so that those asked for stand apart from what is left out.
                    return basis.mT @ vectors[:, :, : k + _BLOCK // 2], k
        basis = torch.cat([basis, newest.mT], -2)
    return None


def _left_out(product: Product, basis: Float[Tensor, "units m c"]) -> Float[Tensor, ""]:
    """A lower bound on the largest eigenvalue that a basis knows nothing of, close where it stands out.

    A block from one random start has as many eigenvectors of one value as it has columns: where a value is there more
    often, those found are right and some are missing, which no residual tells.
    """
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(1, basis.shape[-1], _PROBES, generator=generator, dtype=torch.float64).to(basis.device)
    for _ in range(_STEPS):
        start = product.square(_beside(basis, start)[0])
    probe = _beside(basis, start)[0]
    return torch.linalg.eigvalsh(probe.mT @ product.square(probe))[0, -1]


def _beside(basis: Float[Tensor, "units m c"], x: Float[Tensor, "units c k"]) -> tuple[Tensor, Tensor]:
    """(Q, R) of what x has outside the span of the basis's rows."""
    # Twice, since where little is outside what is left of the first time is as large as its rounding.
    once, size = torch.linalg.qr(x - basis.mT @ (basis @ x))
    twice, turn = torch.linalg.qr(once - basis.mT @ (basis @ once))
    return twice, turn @ size


def _eigenpairs(inner: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending, and eigenvectors of a symmetric matrix from its blocks of rows below the diagonal."""
    width = inner[-1].shape[-1]
    lower = torch.cat([torch.nn.functional.pad(block, (0, width - block.shape[-1])) for block in inner], -2)
    squares, vectors = torch.linalg.eigh(lower)
    return squares.flip(-1).clamp(min=0), vectors.flip(-1)


def _least_rank(product: Product, values: Float[Tensor, "units m"], ranks_of: Ranks) -> int:
    """How many directions are asked for, at least: as if all that are not known were as large as those in the middle.

    Below a third of a Krylov space its values are those that are sought, or nearly.
    """
    energy = product.energy / values[:, 0].square()
    k = int(ranks_of(Spectrum(values, energy)).max())
    if k <= values.shape[-1]:
        return k
    known = values.shape[-1] // 3
    shares = (values / values[:, :1]).square()
    # As many of that size as the energy has room for, or all of it would be more than all.
    room = (energy - shares[:, :known].sum(-1)) / shares[:, known]
    more = min(product.size - known, max(1, math.ceil(room.max().item())))
    hopeful = torch.cat([values[:, :known], values[:, known : known + 1].expand(-1, more)], -1)
    return max(k, int(ranks_of(Spectrum(hopeful, energy)).max()))


def _checked(
    product: Product, coordinates: Float[Tensor, "units c m"], k: int
) -> tuple[Float[Tensor, "units d k"], Spectrum] | None:
    """Singular vectors read out of Ω itself, where their residual is small beside the gap behind them."""
    guess = product.lifted(coordinates)
    for _ in range(_TRIES):
        start = torch.linalg.qr(guess).Q
        turn, values, right = torch.linalg.svd(product.apply_transposed(start).mT, full_matrices=False)
        left = (start @ turn)[:, :, :k]
        # Ωᵀu = σv holds by construction; how far Ωv = σu is off bounds the angle to the singular vectors sought.
        guess = product.apply(right.mT)
        residual = guess[:, :, :k] - left * rearrange(values[:, :k], "units k -> units 1 k")
        if residual.norm() <= _ANGLE * (values[0, k - 1] - values[0, k]):
            return left, Spectrum(values[:, :k], product.energy / values[:, 0].square())
    return None
