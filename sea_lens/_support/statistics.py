"""Intervals of means, chosen by the number and the kind of the items (docs/method.md 6.7)."""

import math
from dataclasses import dataclass
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from .arguments import as_integer, as_number, given
from .proportions import clopper_pearson, is_binary, is_paired_binary, paired_difference
from .resampling import MOST_RESAMPLES, RESAMPLES, bootstrap_bounds, method_for, moderate

# The method of an interval that there is none of, since the value is undefined without one of its items.
UNDEFINED = "undefined"
KINDS = ("auto", "number", "proportion", "difference")


@dataclass(frozen=True, eq=False)
class Interval:
    """A mean with its interval.

    Attributes:
        mean: of the items, in their unit.
        low, high: ends of the interval, in the same unit; NaN where there is no interval: of a single item, and of
            numbers that are all equal, whose spread is unknown.
        level: its coverage, 0.95 by default.
        method: how it was made: "Student's t", "bootstrap-t", "Edgeworth", "Clopper-Pearson", "Tango",
            "Clopper-Pearson and Tango", "none", or "undefined"; empty where nobody said.
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

    def __eq__(self, other: object) -> bool:
        # A NaN is not equal to itself, but an interval that does not exist is.
        return self._compared() == other._compared() if isinstance(other, Interval) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._compared())

    def _compared(self) -> tuple[Any, ...]:
        return tuple(None if isinstance(x, float) and math.isnan(x) else x for x in vars(self).values())

    @property
    def exists(self) -> bool:
        """Whether there is an interval at all."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    def excludes(self, value: float) -> bool:
        """Whether a value lies outside the interval; never where there is none."""
        return self.exists and not self.low <= value <= self.high

    @property
    def form(self) -> str:
        """How mean and ends are shown: with three decimals, or three digits where these would show nothing.

        More where the two ends would look alike, as if there were no doubt.
        """
        largest = max((abs(x) for x in (self.mean, self.low, self.high) if not math.isnan(x)), default=0.0)
        return self._telling("+.3g" if 0 < largest < 1e-2 or largest >= 1e6 else "+.3f")

    def _telling(self, form: str) -> str:
        """A form such as "+.3f" with as many more digits as it takes to tell the ends apart."""
        if not self.low < self.high:
            return form
        start, digits, kind = form[:-2], int(form[-2]), form[-1]
        forms = (f"{start}{more}{kind}" for more in range(digits, 18))
        return next((one for one in forms if f"{self.low:{one}}" != f"{self.high:{one}}"), f"{start}17g")

    def brackets(self, form: str | None = None) -> str:
        """The ends in brackets, or in words that there are none."""
        if self.exists:
            form = self.form if form is None else self._telling(form)
            return f"[{self.low:{form}}, {self.high:{form}}]"
        if math.isnan(self.mean) or not self.n:
            return "(no interval)"
        if self.method == UNDEFINED:
            return f"(no interval: undefined without one of its {self.n} items)"
        return "(no interval: a single item)" if self.n == 1 else f"(no interval: {self.n} equal items)"

    def __str__(self) -> str:
        return f"{self.mean:{self.form}} {self.brackets()}"


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
        resamples: how many times the items are drawn anew, from 1,000 to 100,000.
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
    if resamples > MOST_RESAMPLES:
        raise InputError(f"resamples {resamples}: expected at most {MOST_RESAMPLES}")
    if not 0 < (level := as_number(level, "level")) < 1:
        raise InputError(f"level {level}: expected a number between 0 and 1")
    inside = _bounds(bounds)
    checked = _checked(items)
    values = checked.astype(np.float64)
    chosen = _kind(checked.dtype == np.bool_, values, kind)
    n, mean = len(values), _mean(values)
    least, most = (-math.inf, math.inf) if inside is None else inside
    if not (least <= values.min() and values.max() <= most):
        raise InputError(f"bounds {least} and {most}: expected every item to lie between them")
    if n == 1:
        return Interval(mean, math.nan, math.nan, level, "none", 1)
    if inside is not None and kind in ("auto", "number"):
        if np.isin(values, inside).all():
            ends = clopper_pearson(int((values == most).sum()), n, level)
            low, high = (least + (most - least) * end for end in ends)
            return Interval(mean, low, high, level, "Clopper-Pearson", n)
        chosen = "number"
    if chosen == "number":
        low, high = bootstrap_bounds(values[:, None], bounds=inside, level=level, resamples=resamples, seed=seed)
        method = method_for(n) if not math.isnan(low[0]) else "none"
        return Interval(mean, _plain(low[0]), _plain(high[0]), level, method, n)
    plus, minus = int((values > 0).sum()), int((values < 0).sum())
    if chosen == "proportion":
        return Interval(mean, *clopper_pearson(plus, n, level), level, "Clopper-Pearson", n)
    low, high = paired_difference(plus, minus, n, level)
    if chosen == "difference":
        low, high = max(low, least), min(high, most)
        return Interval(mean, low, high, level, "Tango", n)
    exact = clopper_pearson(plus, n, level)
    low, high = max(0.0, min(low, exact[0])), max(high, exact[1])
    return Interval(mean, low, high, level, "Clopper-Pearson and Tango", n)


def _mean(values: Float[np.ndarray, " n"]) -> float:
    scaled, (power,) = moderate(values[:, None])
    return float(np.ldexp(scaled.mean(), power))


def _checked(items: Any) -> np.ndarray:
    """The items as a list of finite numbers, at least one, in a dtype that says whether they are truth values."""
    try:
        if isinstance(items, Tensor):
            items = items.detach().cpu()
            items = items.double() if items.is_floating_point() else items
        array = np.asarray(items)
        # Texts, dates and complex numbers would pass for numbers.
        known = array.dtype.kind in "biuf" or (array.dtype.kind == "O" and not any(map(_is_text, array.ravel())))
        values = array if array.dtype == np.bool_ else array.astype(np.float64)
    except Exception:  # whatever a stranger's object does when it is asked
        known, values = False, np.zeros(0)
    if not known:
        raise InputError(f"expected a list of numbers to take the interval of, got {type(items).__name__}")
    if np.ma.is_masked(items):
        raise InputError("some items are masked: expected those that count alone, such as .compressed() gives")
    if values.ndim != 1 or not len(values):
        raise InputError(f"expected a list of at least one number to take the interval of, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise InputError(f"item {int((~np.isfinite(values)).argmax())} is NaN or infinite: expected finite numbers")
    return values


def _is_text(item: Any) -> bool:
    return isinstance(item, (str, bytes))


def _bounds(bounds: Any) -> tuple[float, float] | None:
    """The two ends that items lie between, the smaller one first; None where nobody knows them."""
    if bounds is None:
        return None
    try:
        least, most = bounds
    except (TypeError, ValueError):
        raise InputError(f"bounds {given(bounds)}: expected two numbers, the smallest and the largest item") from None
    least, most = as_number(least, "bounds"), as_number(most, "bounds")
    if not least < most:
        raise InputError(f"bounds {least} and {most}: expected the smaller one first")
    return least, most


def _kind(truths: bool, values: Float[np.ndarray, " n"], kind: str) -> str:
    """What the items are; "either" where they may be a proportion or differences."""
    if kind not in KINDS:
        raise InputError(f"unknown kind of items {kind!r}: expected one of {', '.join(KINDS)}")
    if kind == "proportion" and not is_binary(values):
        raise InputError("a proportion has items of 0 and 1 alone: expected them, or another kind")
    if kind == "difference" and not is_paired_binary(values):
        raise InputError("differences of proportions are −1, 0 or 1: expected such items, or another kind")
    if kind != "auto":
        return kind
    if truths:
        return "proportion"
    return "either" if is_binary(values) else "difference" if is_paired_binary(values) else "number"


def _plain(end: float) -> float:
    """An end as Python's number; one and the same NaN, so that equal intervals are equal."""
    return math.nan if math.isnan(end) else float(end)
