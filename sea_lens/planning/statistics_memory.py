"""Memory and disk of what a fit needs and gives (docs/method.md 2.2 and 2.6): statistics, decompositions, factors.

Each function counts the tensors that stand side by side in the code that it names. Bytes.
"""

from dataclasses import dataclass

import torch

from ..spectral.singular import SMALL
from ..spectral.statistics import ROWS
from ..spectral.store import shard_size

_DOUBLE = torch.float64.itemsize
# Neutral, positive and negative.
_KINDS = 3
_SIDES = 2


@dataclass(frozen=True)
class Layout:
    """The statistics of a capture.

    Attributes:
        n: demonstrations.
        layers: that are captured.
        units: of each layer: 1, or its heads at site `z`.
        d: width of a unit.
        itemsize: bytes of a number of the activations that are kept.
    """

    n: int
    layers: int
    units: int
    d: int
    itemsize: int

    @property
    def width(self) -> int:
        """Numbers of a layer's activation."""
        return self.units * self.d

    @property
    def activations(self) -> int:
        """All activations that are read, as a store keeps them."""
        return _KINDS * self.n * self.layers * self.width * self.itemsize

    @property
    def are_sums(self) -> bool:
        """Whether `capture` adds up instead of keeping activations."""
        return self.n >= self.d

    @property
    def sums(self) -> int:
        """Two sums of outer products and three of vectors (`Sums`)."""
        return self.layers * self.units * (_SIDES * self.d**2 + _KINDS * self.d) * _DOUBLE

    @property
    def adding(self) -> int:
        """What stands beside sums while a batch is added (`Sums.add`): activations of one layer in float64."""
        return _KINDS * min(ROWS, self.n) * self.width * _DOUBLE

    @property
    def shard(self) -> int:
        """The activations of one shard of a store."""
        n = min(self.n, shard_size((self.layers, self.units, self.d)))
        return _KINDS * n * self.layers * self.width * self.itemsize


def kept(layout: Layout) -> int:
    """What a capture in memory gives (`capturing._captured`)."""
    return layout.sums if layout.are_sums else layout.activations


def writing_shard(layout: Layout) -> int:
    """A shard as it is read, put together, ordered by layers (`Store.write`)."""
    return 3 * layout.shard


def fitting(layout: Layout, rank: int | None) -> int:
    """The most that the fit of one layer takes beside the statistics (`fitting._fitted`).

    Args:
        layout: of the statistics.
        rank: directions of a side; None for the worst case, the full decomposition.
    """
    if layout.n >= layout.d:
        return _of_matrix(layout, rank)
    return _of_rows(layout, rank)


def _of_rows(layout: Layout, rank: int | None) -> int:
    """Of activations (`ThinProduct`)."""
    n, units = layout.n, layout.units
    raw, rows = _KINDS * n * layout.width * layout.itemsize, n * layout.width * _DOUBLE
    # A mapped copy, and the neutral rows, which both sides share.
    making = 2 * rows
    gram = units * n**2 * _DOUBLE
    # Inner products of both sides, and their root and what it is made of.
    held = 2 * rows + 2 * gram
    if rank is None or units > 1 or n <= SMALL:
        # Orthonormal bases with what LAPACK copies, and the singular vectors of a matrix of n × n.
        return raw + max(making, 2 * rows + 3 * rows + 6 * gram)
    return raw + max(making, held + max(2 * gram, gram + krylov(n, rank)))


def _of_matrix(layout: Layout, rank: int | None) -> int:
    """Of sums (`Matrix`)."""
    matrix = layout.units * layout.d**2 * _DOUBLE
    held = matrix
    if rank is None or layout.units > 1 or layout.d <= SMALL:
        return held + 5 * matrix
    return held + max(matrix, krylov(layout.d, rank))


def krylov(size: int, rank: int) -> int:
    """A Krylov space that holds some directions (`singular._krylov`), and its copy as it grows."""
    columns = min(size // 2, 4 * rank + 64)
    return 2 * size * columns * _DOUBLE


def factors(layout: Layout, rank: int) -> int:
    """An edit's factors and singular values, in memory and in its file (`Subspaces`)."""
    return layout.layers * layout.units * _SIDES * (layout.d + 1) * min(rank, layout.d) * _DOUBLE
