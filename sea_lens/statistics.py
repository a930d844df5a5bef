"""Bootstrap intervals."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap percentile interval.

    Attributes:
        mean: of the items.
        low, high: ends of the interval.
        level: its coverage, 0.95 by default.
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

    Paired when the items are differences of two measurements of the same thing, which is how sea_lens uses it.

    Args:
        items: one number per item.
        level: coverage.
        resamples: how many times the items are drawn anew.
        seed: of the draws; the same seed gives the same interval.
    """
    values = np.asarray(items, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    # In blocks, so that memory stays small for thousands of items.
    block = max(1, 2_000_000 // len(values))
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        means[start:stop] = values[rng.integers(len(values), size=(stop - start, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), level)
