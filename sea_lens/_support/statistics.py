"""Intervals of means, chosen by the number and the kind of the items (docs/method.md 6.7)."""

import functools
import math
from dataclasses import dataclass
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from .arguments import as_integer, as_number
from .proportions import clopper_pearson, is_binary, is_paired_binary, paired_difference

RESAMPLES = 4_000
KINDS = ("auto", "number", "proportion", "difference")
# Below, resampling so few items says nothing that Student's t does not; above, a closed form is as good.
FEWEST_RESAMPLED, MOST_RESAMPLED = 5, 500
# Of items that are equal but for rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """A mean with its interval.

    Attributes:
        mean: of the items, in their unit.
        low, high: ends of the interval, in the same unit; NaN where there is no interval: of a single item, and of
            numbers that are all equal, whose spread is unknown.
        level: its coverage, 0.95 by default.
        method: how it was made: "Student's t", "bootstrap-t", "Edgeworth", "Clopper-Pearson", "Tango",
            "Clopper-Pearson and Tango", or "none"; empty where nobody said.
        n: the number of items, None where nobody said.

    Example:
        >>> interval = sl.Interval(0.2, low=0.1, high=0.3)
        >>> print(interval)
        +0.200 [+0.100, +0.300]
        >>> interval.excludes(0.0)
        True
        >>> print(sl.bootstrap([0.2]))
        +0.200 (no interval: a single item)
    """

    mean: float
    low: float
    high: float
    level: float = 0.95
    method: str = ""
    n: int | None = None

    @property
    def exists(self) -> bool:
        """Whether there is an interval at all."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    def excludes(self, value: float) -> bool:
        """Whether a value lies outside the interval; never where there is none."""
        return self.exists and not self.low <= value <= self.high

    def brackets(self, form: str = "+.3f") -> str:
        """The ends in brackets, or in words that there are none."""
        if self.exists:
            return f"[{self.low:{form}}, {self.high:{form}}]"
        why = {None: "", 1: ": a single item"}.get(self.n, f": {self.n} equal items")
        return f"(no interval{why if not math.isnan(self.mean) else ''})"

    def __str__(self) -> str:
        return f"{self.mean:+.3f} {self.brackets()}"


def bootstrap(
    items: Any,
    *,
    kind: str = "auto",
    bounds: tuple[SupportsFloat, SupportsFloat] | None = None,
    level: SupportsFloat = 0.95,
    resamples: SupportsIndex = RESAMPLES,
    seed: SupportsIndex = 0,
) -> Interval:
    """Interval of the mean of independent items, chosen by their number and their kind (docs/method.md 6.7).

    Numbers have a studentised bootstrap interval, never narrower than Student's (`bootstrap_bounds`). Proportions,
    whose items are 0 or 1, have Clopper and Pearson's exact interval. Paired differences of proportions, whose items
    are −1, 0 or 1, have Tango's score interval. The interval is paired where the items are differences of two
    measurements of the same thing, as those of effects and contributions are.

    Args:
        items: one finite number per item, at least one; (n,).
        kind: "number", "proportion" or "difference"; "auto" takes items of −1, 0 and 1 for differences, and all others
            but those of 0 and 1 for numbers. Items of 0 and 1 in a numeric array may be a proportion or differences
            none of which is negative: their interval covers as either, between 0 and 1. In a boolean array they are a
            proportion.
        bounds: the smallest and the largest value that an item can have, where that is known. No end then lies
            outside, and numbers that all lie at the bounds are a proportion of what is between them.
        level: coverage.
        resamples: how many times the items are drawn anew, at least 1,000.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        The mean of the items and the interval, in the unit of the items. A single item has no interval, and numbers
        that are all equal have none either.

    Raises:
        InputError: no items, items that are not a list of finite numbers, an unknown kind, items of another kind or
            outside the bounds, or a level that is none.

    Example:
        >>> interval = sl.bootstrap([1.0, 2.0, 3.0, 4.0, 6.0])
        >>> interval.mean, interval.excludes(-9.0), interval.excludes(3.0)
        (3.2, True, False)
        >>> print(sl.bootstrap([0, 0, 0, 1, 0, 0, 0, 0], kind="proportion"))
        +0.125 [+0.003, +0.527]
    """
    resamples, seed = as_integer(resamples, "resamples", least=1000), as_integer(seed, "seed", least=0)
    if not 0 < (level := as_number(level, "level")) < 1:
        raise InputError(f"level {level}: expected a number between 0 and 1")
    values = _checked(items)
    chosen = _kind(np.asarray(items), values, kind)
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, level, "none", 1)
    if bounds is not None and kind in ("auto", "number"):
        least, most = (as_number(end, "bounds") for end in bounds)
        if not (least <= values.min() and values.max() <= most and least < most):
            raise InputError(f"bounds {least} and {most}: expected every item to lie between them")
        if np.isin(values, (least, most)).all():
            ends = clopper_pearson(int((values == most).sum()), n, level)
            low, high = (least + (most - least) * end for end in ends)
            return Interval(mean, low, high, level, "Clopper-Pearson", n)
        chosen = "number"
    if chosen == "number":
        inside = None if bounds is None else (float(bounds[0]), float(bounds[1]))
        low, high = bootstrap_bounds(values[:, None], bounds=inside, level=level, resamples=resamples, seed=seed)
        method = method_for(n) if not math.isnan(low[0]) else "none"
        return Interval(mean, _plain(low[0]), _plain(high[0]), level, method, n)
    plus, minus = int((values > 0).sum()), int((values < 0).sum())
    if chosen == "proportion":
        return Interval(mean, *clopper_pearson(plus, n, level), level, "Clopper-Pearson", n)
    low, high = paired_difference(plus, minus, n, level)
    if chosen == "difference":
        return Interval(mean, low, high, level, "Tango", n)
    exact = clopper_pearson(plus, n, level)
    low, high = max(0.0, min(low, exact[0])), max(high, exact[1])
    return Interval(mean, low, high, level, "Clopper-Pearson and Tango", n)


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
    if bounds is not None:
        ends = np.clip(ends, *bounds)
    return ends[0], ends[1]


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


def _checked(items: Any) -> Float[np.ndarray, " n"]:
    """The items as a list of finite numbers, at least one."""
    try:
        values = np.asarray(items, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"expected a list of numbers to take the interval of, got {type(items).__name__}") from None
    if values.ndim != 1 or not len(values):
        raise InputError(f"expected a list of at least one number to take the interval of, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise InputError(f"item {int((~np.isfinite(values)).argmax())} is NaN or infinite: expected finite numbers")
    return values


def _kind(given: np.ndarray, values: Float[np.ndarray, " n"], kind: str) -> str:
    """What the items are; "either" where they may be a proportion or differences."""
    if kind not in KINDS:
        raise InputError(f"unknown kind of items {kind!r}: expected one of {', '.join(KINDS)}")
    if kind == "proportion" and not is_binary(values):
        raise InputError("a proportion has items of 0 and 1 alone: expected them, or another kind")
    if kind == "difference" and not is_paired_binary(values):
        raise InputError("differences of proportions are −1, 0 or 1: expected such items, or another kind")
    if kind != "auto":
        return kind
    if given.dtype == np.bool_:
        return "proportion"
    return "either" if is_binary(values) else "difference" if is_paired_binary(values) else "number"


def _plain(end: float) -> float:
    """An end as Python's number; one and the same NaN, so that equal intervals are equal."""
    return math.nan if math.isnan(end) else float(end)


# Kept for interval ends that are themselves draws, such as rank agreements.
def percentiles(draws: Float[np.ndarray, "draws *parts"], level: float = 0.95) -> Float[np.ndarray, "2 *parts"]:
    """Ends of the percentile interval of this coverage; draws that are NaN are left out, NaN if all are."""
    ends = [(1 - level) / 2, (1 + level) / 2]
    missing = np.isnan(draws)
    if not missing.any():
        return np.quantile(draws, ends, axis=0)
    empty = missing.all(axis=0)
    return np.where(empty, np.nan, np.nanquantile(np.where(empty, 0.0, draws), ends, axis=0))
