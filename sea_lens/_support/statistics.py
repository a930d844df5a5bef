"""Bootstrap intervals (docs/method.md 6.7)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap percentile interval.

    Attributes:
        mean: of the items, in their unit.
        low, high: ends of the interval, in the same unit.
        level: its coverage, 0.95 by default.

    Example:
        >>> interval = sl.Interval(0.2, low=0.1, high=0.3)
        >>> print(interval)
        +0.200 [+0.100, +0.300]
        >>> interval.excludes(0.0)
        True
    """

    mean: float
    low: float
    high: float
    level: float = 0.95

    def excludes(self, value: float) -> bool:
        """Whether a value lies outside the interval."""
        return not self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def bootstrap(
    items: Float[np.ndarray, " n"], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    The interval is paired where the items are differences of two measurements of the same thing, as those of effects
    and contributions are (docs/method.md 6.7).

    Args:
        items: one number per item, at least one; (n,).
        level: coverage.
        resamples: how many times the items are drawn anew.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        The mean of the items and the interval, in the unit of the items.

    Example:
        >>> import numpy as np
        >>> interval = sl.bootstrap(np.array([1.0, 2.0, 3.0, 4.0]))
        >>> interval.mean, interval.excludes(0.0), interval.excludes(2.0)
        (2.5, True, False)
    """
    values = np.asarray(items, dtype=np.float64)
    low, high = bootstrap_bounds(values[:, None], level=level, resamples=resamples, seed=seed)
    return Interval(float(values.mean()), float(low[0]), float(high[0]), level)


def bootstrap_bounds(
    items: Float[np.ndarray, "n parts"], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Float[np.ndarray, " parts"], Float[np.ndarray, " parts"]]:
    """Ends of `bootstrap`'s interval for each column; all columns share the draws, so that they stay paired."""
    values = np.asarray(items, dtype=np.float64)
    n, parts = values.shape
    ends = np.empty((2, parts))
    # In blocks of columns, so that memory stays small for many of them.
    width = max(1, 20_000_000 // resamples)
    for first in range(0, parts, width):
        means = resampled_sums(values[:, first : first + width], resamples=resamples, seed=seed) / n
        ends[:, first : first + width] = percentiles(means, level)
    return ends[0], ends[1]


def resampled_sums(
    items: Float[np.ndarray, "n parts"], *, resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "resamples parts"]:
    """Sum of each column over n items drawn with replacement; the same seed draws the same items."""
    values = np.asarray(items, dtype=np.float64)
    n, parts = values.shape
    rng = np.random.default_rng(seed)
    sums = np.empty((resamples, parts))
    # In blocks of resamples, so that memory stays small for many items.
    depth = max(1, 2_000_000 // n)
    for start in range(0, resamples, depth):
        rows = min(depth, resamples - start)
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        # How often each item was drawn says as much as which were, and makes the sums one matrix product.
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        sums[start : start + rows] = counts @ values
    return sums


def percentiles(draws: Float[np.ndarray, "resamples *parts"], level: float = 0.95) -> Float[np.ndarray, "2 *parts"]:
    """Ends of the percentile interval of this coverage; draws that are NaN are left out, NaN if all are."""
    ends = [(1 - level) / 2, (1 + level) / 2]
    missing = np.isnan(draws)
    if not missing.any():
        return np.quantile(draws, ends, axis=0)
    empty = missing.all(axis=0)
    return np.where(empty, np.nan, np.nanquantile(np.where(empty, 0.0, draws), ends, axis=0))
