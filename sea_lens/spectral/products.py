"""Cross-covariances as linear maps: a d × d matrix, or the thin product of the activations behind it.

Both have the same face, so that singular vectors are found in one way (`spectral.singular`). Tensors only. What is very
large or small is scaled by its largest entry, so that squares neither overflow nor vanish.
"""

import contextlib
import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from ..errors import ActivationError

# Rows of a Gram matrix at a time: below the diagonal it is mirrored, which saves almost half of the work.
_GRAM_BLOCKS = 8
# Entries between this and one over it are not scaled: sums of their fourth powers are far from where float64 ends.
_MODERATE = 2.0**64
# Share of what it could be that the energy of a thin product must be, so that ten digits of it are right.
_CANCELS = 1e-6


class Product(ABC):
    """Ω of every unit of one layer and side, divided by `scale`, float64.

    Attributes:
        scale: Ω over the matrix that the methods speak of, one number for each unit.
    """

    scale: Float[Tensor, " units"]

    @property
    @abstractmethod
    def size(self) -> int:
        """Most singular values that can differ from zero."""

    @property
    @abstractmethod
    def is_finite(self) -> bool:
        """Whether no entry has overflowed."""

    @abstractmethod
    def decomposition(self) -> tuple[Float[Tensor, "units d k"], Float[Tensor, "units k"]]:
        """All left singular vectors and singular values, descending."""

    @cached_property
    @abstractmethod
    def energy(self) -> Float[Tensor, " units"]:
        """Squared Frobenius norm: the sum of all squared singular values."""

    @abstractmethod
    def apply(self, x: Float[Tensor, "units d m"]) -> Float[Tensor, "units d m"]:
        """Ω x."""

    @abstractmethod
    def apply_transposed(self, x: Float[Tensor, "units d m"]) -> Float[Tensor, "units d m"]:
        """Ωᵀ x."""

    @property
    @abstractmethod
    def coordinates(self) -> int:
        """Number of the coordinates that `square` works in; 0 where it would not tell the truth."""

    @abstractmethod
    def square(self, x: Float[Tensor, "units c m"]) -> Float[Tensor, "units c m"]:
        """A symmetric matrix times x whose eigenvalues are those of Ω Ωᵀ, up to rounding."""

    @abstractmethod
    def lifted(self, x: Float[Tensor, "units c m"]) -> Float[Tensor, "units d m"]:
        """What eigenvectors of `square` are for Ω Ωᵀ, of any length."""


@dataclass(frozen=True, eq=False)
class Matrix(Product):
    """Ω as it stands.

    Attributes:
        matrix: Ω / scale.
    """

    matrix: Float[Tensor, "units d d"]
    scale: Float[Tensor, " units"]

    @classmethod
    def of(cls, omega: Float[Tensor, "units d d"]) -> "Matrix":
        """The product of a cross-covariance."""
        scaled, scale = _scaled(omega)
        return cls(scaled, scale)

    @property
    def size(self) -> int:
        return self.matrix.shape[-1]

    @property
    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.scale).all())

    def decomposition(self) -> tuple[Float[Tensor, "units d k"], Float[Tensor, "units k"]]:
        return left_and_values(self.matrix)

    @cached_property
    def energy(self) -> Float[Tensor, " units"]:
        return reduce(self.matrix.square(), "units i j -> units", "sum")

    def apply(self, x: Float[Tensor, "units d m"]) -> Float[Tensor, "units d m"]:
        return self.matrix @ x

    def apply_transposed(self, x: Float[Tensor, "units d m"]) -> Float[Tensor, "units d m"]:
        return self.matrix.mT @ x

    @property
    def coordinates(self) -> int:
        return self.matrix.shape[-1]

    def square(self, x: Float[Tensor, "units c m"]) -> Float[Tensor, "units c m"]:
        return self.apply(self.apply_transposed(x))

    def lifted(self, x: Float[Tensor, "units c m"]) -> Float[Tensor, "units d m"]:
        return x


@dataclass(frozen=True, eq=False)
class Rows:
    """One set of mapped activations, with what the products of both sides need of it.

    Attributes:
        values: activations over `scale`.
        scale: their largest modulus where that is very large or small, else 1.
    """

    values: Float[Tensor, "units n d"]
    scale: Float[Tensor, " units"]

    @classmethod
    def of(cls, activations: Float[Tensor, "n units d"]) -> "Rows":
        """The rows of each unit, float64."""
        return cls(*_scaled(rearrange(activations, "n units d -> units n d")))

    @cached_property
    def gram(self) -> Float[Tensor, "units n n"]:
        """Inner products of the rows."""
        rows = self.values
        n = rows.shape[1]
        gram = rows.new_empty(rows.shape[0], n, n)
        starts = [round(n * block / _GRAM_BLOCKS) for block in range(_GRAM_BLOCKS + 1)]
        for start, stop in itertools.pairwise(starts):
            torch.matmul(rows[:, start:stop], rows[:, :stop].mT, out=gram[:, start:stop, :stop])
            gram[:, :start, start:stop] = gram[:, start:stop, :start].mT
        return gram

    @property
    def energy(self) -> Float[Tensor, " units"]:
        """Sum of the squares of all entries."""
        return reduce(self.gram.diagonal(dim1=-2, dim2=-1), "units n -> units", "sum")

    @cached_property
    def root(self) -> Float[Tensor, "units n n"] | None:
        """Lower triangular L with L Lᵀ = gram up to rounding, None where rounding is too large for one.

        A multiple of the identity of the size of rounding is added: equal demonstrations make the matrix singular. What
        is found with L is only where to look (`spectral.singular`), and what is reported is computed from the rows.
        """
        gram = self.gram
        size = torch.finfo(gram.dtype).eps * self.energy
        for factor in (1.0, 100.0, 10_000.0):
            shifted = gram.clone()
            shifted.diagonal(dim1=-2, dim2=-1).add_(rearrange(factor * size, "units -> units 1"))
            root, failed = torch.linalg.cholesky_ex(shifted)
            if not failed.any():
                return root
        return None

    @cached_property
    def factors(self) -> tuple[Float[Tensor, "units d k"], Float[Tensor, "units k n"]]:
        """(Q, R) with the rows as columns: valuesᵀ = Q R."""
        return torch.linalg.qr(self.values.mT)


@dataclass(frozen=True, eq=False)
class ThinProduct(Product):
    """Ω = HᵀK / n from fewer activations than they are wide, never made as a matrix.

    Attributes:
        neutral, other: H and K.
    """

    neutral: Rows
    other: Rows

    @property
    def scale(self) -> Float[Tensor, " units"]:  # type: ignore[override]
        return self.neutral.scale * (self.other.scale / self.neutral.values.shape[1])

    @property
    def size(self) -> int:
        return min(self.neutral.values.shape[1:])

    @property
    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.scale * self.energy.sqrt()).all())

    def decomposition(self) -> tuple[Float[Tensor, "units d k"], Float[Tensor, "units k"]]:
        basis, right = self.neutral.factors
        left, values = left_and_values(right @ torch.linalg.qr(self.other.values.mT, mode="r").R.mT)
        return basis @ left, values

    @cached_property
    def energy(self) -> Float[Tensor, " units"]:
        # ‖HᵀK‖² is the trace of HHᵀKKᵀ, which rounding can make less than nothing where it is next to nothing.
        return reduce(self.neutral.gram * self.other.gram, "units i j -> units", "sum").clamp(min=0)

    def apply(self, x: Float[Tensor, "units d m"]) -> Float[Tensor, "units d m"]:
        return _after(x, self.other.values, self.neutral.values.mT)

    def apply_transposed(self, x: Float[Tensor, "units d m"]) -> Float[Tensor, "units d m"]:
        return _after(x, self.neutral.values, self.other.values.mT)

    @property
    def coordinates(self) -> int:
        # Where nearly all of HᵀK cancels, the sum above is mostly rounding.
        most = self.neutral.energy * self.other.energy
        if self.neutral.root is None or (self.energy < _CANCELS * most).any():
            return 0
        return self.neutral.values.shape[1]

    def square(self, x: Float[Tensor, "units c m"]) -> Float[Tensor, "units c m"]:
        root = self.neutral.root
        assert root is not None
        return _after(x, root, self.other.gram, root.mT)

    def lifted(self, x: Float[Tensor, "units c m"]) -> Float[Tensor, "units d m"]:
        root = self.neutral.root
        assert root is not None
        return _after(x, root, self.other.gram, self.neutral.values.mT)


def left_and_values(
    matrix: Float[Tensor, "units m n"],
) -> tuple[Float[Tensor, "units m k"], Float[Tensor, "units k"]]:
    """Left singular vectors and singular values, descending.

    Raises:
        ActivationError: LAPACK finds none.
    """
    # Its divide and conquer can fail where values repeat, and as a rule does not for the transposed matrix, nor for one
    # whose rows are turned, which has the same left singular vectors and values.
    with contextlib.suppress(torch.linalg.LinAlgError):  # pyright: ignore[reportPrivateImportUsage]
        left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
        return left, values
    with contextlib.suppress(torch.linalg.LinAlgError):  # pyright: ignore[reportPrivateImportUsage]
        _, values, right = torch.linalg.svd(matrix.mT.contiguous(), full_matrices=False)
        return right.mT, values
    with contextlib.suppress(torch.linalg.LinAlgError):  # pyright: ignore[reportPrivateImportUsage]
        n = matrix.shape[-1]
        start = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        left, values, _ = torch.linalg.svd(matrix @ torch.linalg.qr(start).Q.to(matrix), full_matrices=False)
        return left, values
    raise ActivationError(
        f"no singular values of a matrix of {matrix.shape[-2]} × {matrix.shape[-1]} could be computed (its largest "
        f"entry is {matrix.abs().max().item():.1e}): expected finite activations that are no multiples of one another"
    )


def _after(x: Float[Tensor, "units d m"], *matrices: Float[Tensor, "units ..."]) -> Float[Tensor, "units i m"]:
    """The last matrix @ … @ the first @ x.

    Multiplied from the other side: with few columns that is up to twice as fast, since rows of x lie together.
    """
    rows = x.mT
    for matrix in matrices:
        rows = rows @ matrix.mT
    return rows.mT


def _scaled(x: Float[Tensor, "units n d"]) -> tuple[Float[Tensor, "units n d"], Float[Tensor, " units"]]:
    """X over its largest modulus, and that; as it is, and 1, where its squares need none or it is zero."""
    largest = torch.linalg.vector_norm(x, ord=torch.inf, dim=(1, 2))
    ones = torch.ones_like(largest)
    if ((largest == 0) | ((largest > 1 / _MODERATE) & (largest < _MODERATE))).all():
        return x, ones
    # What is no number stays so in the scale, which says that the product has overflowed.
    scale = torch.where(largest == 0, ones, largest)
    return x / rearrange(scale, "units -> units 1 1"), scale
