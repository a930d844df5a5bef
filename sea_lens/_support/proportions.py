"""Intervals of proportions and of their paired differences (docs/method.md 6.7)."""

import numpy as np
from jaxtyping import Float


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper and Pearson 1934): it covers with at least its level at every n.

    Args:
        successes: how many of the items are 1.
        n: number of items, at least one.
        level: coverage.
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def paired_difference(plus: int, minus: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of the difference of two paired proportions (Tango 1998).

    The items are differences of two measurements of 0 or 1: `plus` of them are +1, `minus` are −1, the rest 0. A
    difference δ belongs to the interval where the score statistic (plus − minus − nδ) / √(n (2 q + δ(1 − δ))) is within
    the normal quantile, with q the maximum-likelihood probability of −1 given δ. It uses nothing but these three
    counts, has no width of zero, and stays between −1 and 1.

    Args:
        plus, minus, n: the counts; n at least one.
        level: coverage.
    """
    from scipy.special import ndtri

    z = float(ndtri((1 + level) / 2))
    estimate = (plus - minus) / n

    def statistic(delta: float) -> float:
        linear = -plus - minus + (2 * n - plus + minus) * delta
        root = np.sqrt(max(linear * linear + 8 * n * minus * delta * (1 - delta), 0.0))
        share = (root - linear) / (4 * n)
        variance = n * (2 * share + delta * (1 - delta))
        difference = plus - minus - n * delta
        # Where the variance is zero, δ is at an end of its range, and only the items that lie there fit it.
        return difference / np.sqrt(variance) if variance > 0 else np.sign(difference) * np.inf if difference else 0.0

    def end(outer: float, sign: int) -> float:
        """Where the statistic passes sign · z, between the estimate, where it is zero, and an end of the range."""
        if sign * statistic(outer) <= z:
            return outer
        inner = estimate
        for _ in range(60):
            middle = (inner + outer) / 2
            inner, outer = (middle, outer) if sign * statistic(middle) <= z else (inner, middle)
        return (inner + outer) / 2

    return end(-1.0, 1), end(1.0, -1)


def is_binary(items: Float[np.ndarray, " n"]) -> bool:
    """Whether every item is 0 or 1."""
    return bool(np.isin(items, (0.0, 1.0)).all())


def is_paired_binary(items: Float[np.ndarray, " n"]) -> bool:
    """Whether every item is −1, 0 or 1."""
    return bool(np.isin(items, (-1.0, 0.0, 1.0)).all())
