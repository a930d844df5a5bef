"""Intervals of benchmark scores and of their differences, over the items that each score is of (docs/method.md 6.7)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from .._support.proportions import is_binary
from .._support.statistics import UNDEFINED, Interval, bootstrap
from .benchmark import Benchmark

Sums = Mapping[str, Float[np.ndarray, " items"]]


@dataclass(frozen=True, eq=False)
class ScoreItems:
    """A score taken apart into what each item adds to it.

    Attributes:
        score: of all items.
        active: which items it is of: those that add to one of its sums.
        own: the score of each item alone.
        without: the score without each item.
    """

    score: float
    active: Bool[np.ndarray, " items"]
    own: Float[np.ndarray, " items"]
    without: Float[np.ndarray, " items"]

    @property
    def is_mean(self) -> bool:
        """Whether it is the mean of its items' own scores, as an accuracy is, and a perplexity is not."""
        own = self.own[self.active]
        return bool(len(own)) and bool(np.isfinite(own).all()) and math.isclose(own.mean(), self.score, abs_tol=1e-12)

    def values(self, among: Bool[np.ndarray, " items"]) -> Float[np.ndarray, " among"]:
        """One number per item whose mean estimates the score: jackknife pseudo-values (Tukey 1958).

        Of a mean they are the items' own scores.
        """
        n = int(among.sum())
        return n * self.score - (n - 1) * self.without[among]


def score_items(benchmark: Benchmark, sums: Sums) -> dict[str, ScoreItems]:
    """Every score of a benchmark taken apart."""
    names, columns = list(sums), np.stack(list(sums.values()), axis=1).astype(np.float64)
    totals = columns.sum(0)

    def scores(table: Float[np.ndarray, "rows columns"]) -> dict[str, np.ndarray]:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            found = benchmark.scores(dict(zip(names, np.ascontiguousarray(table.T), strict=True)))
        return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}

    whole, own, without = scores(totals[None]), scores(columns), scores(totals - columns)
    # Which sums a score is made of shows at a place where none of them is zero.
    place = np.abs(totals) + 1 + 0.37 * np.arange(len(names))
    still, moved = scores(place[None]), scores(place + np.diag(0.5 * place))
    found = {}
    for name, (score,) in whole.items():
        relevant = ~np.isclose(moved[name], still[name], rtol=1e-9, atol=0.0, equal_nan=True)
        active = (columns[:, relevant] != 0).any(1)
        found[name] = ScoreItems(float(score), active, own[name], without[name])
    return found


def bounds_of(benchmark: Benchmark, score: str) -> tuple[float, float] | None:
    """The smallest and the largest value of a score of a single item, by its name without the group; None unknown."""
    return benchmark.bounds.get(score.split("/", 1)[0])


def score_interval(benchmark: Benchmark, name: str, items: ScoreItems, seed: int) -> Interval:
    """Interval of one score."""
    if items.is_mean:
        return _mean_interval(items.own[items.active], bounds_of(benchmark, name), seed)
    return _smooth_interval(items.score, items.values(items.active), bounds_of(benchmark, name), seed)


def difference_interval(benchmark: Benchmark, name: str, before: ScoreItems, after: ScoreItems, seed: int) -> Interval:
    """Paired interval of after − before of one score."""
    bounds = bounds_of(benchmark, name)
    width = None if bounds is None or math.isinf(bounds[1] - bounds[0]) else bounds[1] - bounds[0]
    among = before.active | after.active
    if before.is_mean and after.is_mean and (before.active == after.active).all():
        own = [one.own[among] for one in (before, after)]
        difference = own[1] - own[0]
        if bounds is None and _is_proportion(np.concatenate(own)):
            return bootstrap(difference, kind="difference")
        if bounds is not None and width is not None and all(np.isin(one, bounds).all() for one in own):
            scaled = bootstrap(np.round(difference / width), kind="difference")
            return replace(scaled, mean=scaled.mean * width, low=scaled.low * width, high=scaled.high * width)
        # Equal items of both runs are no difference of a proportion: their spread is unknown.
        return _numbers(difference, None if width is None else (-width, width), seed)
    values = after.values(among) - before.values(among)
    change = after.score - before.score
    return _smooth_interval(change, values, None if width is None else (-width, width), seed)


def _mean_interval(own: Float[np.ndarray, " n"], bounds: tuple[float, float] | None, seed: int) -> Interval:
    if bounds is None and _is_proportion(own):
        return bootstrap(own, kind="proportion")
    return _numbers(own, bounds, seed)


def _numbers(items: Float[np.ndarray, " n"], bounds: tuple[float, float] | None, seed: int) -> Interval:
    if bounds is None or not (bounds[0] <= items.min() and items.max() <= bounds[1]):
        return bootstrap(items, kind="number", seed=seed)
    if not np.isfinite(bounds).all():
        return _within(bootstrap(items, kind="number", seed=seed), bounds)
    return bootstrap(items, kind="number", bounds=bounds, seed=seed)


def _is_proportion(items: Float[np.ndarray, " n"]) -> bool:
    """Whether items of a score whose range nobody told are right or wrong: a divergence can be 0 for all of them."""
    return is_binary(items) and bool(np.ptp(items) > 0)


def _within(interval: Interval, bounds: tuple[float, float] | None) -> Interval:
    """The interval without what lies outside the bounds, unless rounding has put the mean itself there."""
    if bounds is None or not interval.exists or not bounds[0] <= interval.mean <= bounds[1]:
        return interval
    return replace(interval, low=max(interval.low, bounds[0]), high=min(interval.high, bounds[1]))


def _smooth_interval(
    score: float, values: Float[np.ndarray, " n"], bounds: tuple[float, float] | None, seed: int
) -> Interval:
    """Interval about a score whose pseudo-values these are; none where a score of fewer items is undefined."""
    n = len(values)
    if n < 2:
        return Interval(score, math.nan, math.nan, method="none", n=n)
    if not np.isfinite(values).all() or not math.isfinite(score):
        return Interval(score, math.nan, math.nan, method=UNDEFINED, n=n)
    found = bootstrap(values, kind="number", seed=seed)
    if not found.exists:
        return replace(found, mean=score)
    # The mean of pseudo-values is off the score by its jackknife bias.
    low, high = (end + score - found.mean for end in (found.low, found.high))
    return _within(replace(found, mean=score, low=low, high=high), bounds)
