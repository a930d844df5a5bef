"""Ends of intervals of means of numbers, by drawing the numbers anew (docs/method.md 6.7)."""

import functools
import math

import numpy as np
from jaxtyping import Float

RESAMPLES = 4_000
# More say nothing more, and take gigabytes.
MOST_RESAMPLES = 100_000
# Below, resampling so few items says nothing that Student's t does not; above, a closed form is as good.
FEWEST_RESAMPLED, MOST_RESAMPLED = 5, 500
# Of items that are equal but for rounding.
_ROUNDING = 1e-12


def method_for(n: int) -> str:
    """How the interval of n numbers is made."""
    return "Student's t" if n < FEWEST_RESAMPLED else "bootstrap-t" if n <= MOST_RESAMPLED else "Edgeworth"


def bootstrap_bounds(
    items: Float[np.ndarray, "n parts"],
    *,
    bounds: tuple[float, float] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " parts"], Float[np.ndarray, " parts"]]:
    """Ends of the interval of each column's mean, its items taken as numbers (docs/method.md 6.7).

    - n < 5: Student's t.
    - up to 500: bootstrap-t (Efron and Tibshirani 1993, chapter 12), smoothed so that no resample has a spread of
      zero (Polansky 2000), its quantiles at a level widened for few items, and each end no nearer to the mean than
      Student's.
    - above: the same to second order, in closed form (Hall 1988), each end no nearer than Student's.

    All columns share the draws, which depend on the seed and on n alone. Ends are NaN for a single item, for columns
    whose items are all equal, and for those that hold NaN.
    """
    from scipy.special import ndtr, ndtri, stdtrit

    values = np.asarray(items, dtype=np.float64)
    n, parts = values.shape
    if n < 2:
        return np.full(parts, math.nan), np.full(parts, math.nan)
    values, powers = moderate(values)
    mean = values.mean(0)
    spread = values.std(0, ddof=1)
    with np.errstate(invalid="ignore"):
        told = np.ptp(values, axis=0) > _ROUNDING * np.abs(values).max(0)
    scaled = (values - mean)[:, told] / spread[told]
    error = spread[told] / math.sqrt(n)
    above = (1 + level) / 2
    student = float(stdtrit(n - 1, above))
    lower, upper = np.full(scaled.shape[1], student), np.full(scaled.shape[1], student)
    if n > MOST_RESAMPLED:
        skewness = (scaled**3).mean(0)
        second = skewness * (2 * ndtri(above) ** 2 + 1) / (6 * math.sqrt(n))
        lower, upper = lower + np.maximum(-second, 0), upper + np.maximum(second, 0)
    elif n >= FEWEST_RESAMPLED:
        # Few items do not show the tails they come from; the widening stops at 20, below which it would run away.
        tail = float(ndtr(-stdtrit(max(n, 20) - 1, above)))
        # In blocks of columns, so that memory stays small for many of them.
        for first in range(0, scaled.shape[1], 500):
            block = slice(first, first + 500)
            ratios = _studentised(scaled[:, block], resamples, seed)
            least, most = np.quantile(ratios, [tail, 1 - tail], axis=0)
            lower[block], upper[block] = np.maximum(lower[block], most), np.maximum(upper[block], -least)
    ends = np.full((2, parts), math.nan)
    ends[0, told], ends[1, told] = mean[told] - lower * error, mean[told] + upper * error
    with np.errstate(over="ignore"):
        ends = np.ldexp(ends, powers)
    if bounds is not None:
        ends = np.clip(ends, *bounds)
    return ends[0], ends[1]


def moderate(values: Float[np.ndarray, "n parts"]) -> tuple[Float[np.ndarray, "n parts"], np.ndarray]:
    """Each column divided by a power of two that makes its squares and sums neither overflow nor vanish, and the power.

    No bit of an ordinary column's mean or ends depends on it.
    """
    powers = np.frexp(np.abs(values).max(0))[1]
    return np.ldexp(values, -powers), powers


def _studentised(
    scaled: Float[np.ndarray, "n parts"], resamples: int, seed: int
) -> Float[np.ndarray, "resamples parts"]:
    """Student's ratio of each resample of items of mean 0 and variance 1, with a little noise on every item drawn."""
    n = len(scaled)
    counts, noise, squares = _drawn(n, resamples, seed)
    width = 0.5 / math.sqrt(n)
    means = (counts @ scaled + width * noise.sum(1, keepdims=True)) / n
    powers = counts @ scaled**2 + 2 * width * (noise @ scaled) + width**2 * squares[:, None]
    # Not below what rounding leaves of a difference of two large sums.
    variances = np.maximum((powers - n * means**2) / (n - 1), 1e-12)
    return means * np.sqrt(n / variances)


@functools.lru_cache(maxsize=4)
def _drawn(
    n: int, resamples: int, seed: int
) -> tuple[
    Float[np.ndarray, "resamples n"],
    Float[np.ndarray, "resamples n"],
    Float[np.ndarray, " resamples"],
]:
    """How often each item is drawn, the sum of the noise on its copies, and the sum of all squares of noise."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    normal = rng.standard_normal((resamples, n))
    drawn = counts > 0
    # Of k copies of an item the noise adds up to √k times a normal number; what the sum leaves of the squares is χ².
    further = n - drawn.sum(1)
    squares = (normal**2 * drawn).sum(1) + np.where(further > 0, rng.chisquare(np.maximum(further, 1)), 0.0)
    return counts, np.sqrt(counts) * normal, squares
