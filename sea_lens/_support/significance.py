"""p-values of values beside those of controls (docs/method.md 6.8)."""

import numpy as np
from jaxtyping import Float


def rank_p_values(
    values: Float[np.ndarray, " parts"], controls: Float[np.ndarray, "draws parts"]
) -> Float[np.ndarray, " parts"]:
    """Two-sided p-value of each value among its controls: (1 + controls at least as far out) / (1 + controls).

    How far out a value lies is counted from the middle of it and its controls together, so that all of them are treated
    alike: where the controls are draws like the value itself, p ≤ α with probability at most α.

    Args:
        values: of the edit.
        controls: the same of each control edit.
    """
    own, others = _outlying(values, controls)
    return _share(own, others)


def corrected_p_values(
    values: Float[np.ndarray, " parts"], controls: Float[np.ndarray, "draws parts"]
) -> Float[np.ndarray, " parts"]:
    """The same, corrected over all parts by the maximum statistic (Westfall and Young 1993, single step).

    Each part's distance is compared with the largest of all parts in each control, in units of the part's own spread.
    The probability that any part at all has p ≤ α is then at most α where no part differs from its controls.
    """
    own, others = _outlying(values, controls)
    largest = others.max(axis=1, initial=0.0)
    return _share(own, np.broadcast_to(largest[:, None], others.shape))


def _outlying(
    values: Float[np.ndarray, " parts"], controls: Float[np.ndarray, "draws parts"]
) -> tuple[Float[np.ndarray, " parts"], Float[np.ndarray, "draws parts"]]:
    """Distance of each value and control from the mean of both together, in units of their standard deviation."""
    pool = np.concatenate([values[None], controls]).astype(np.float64)
    distance = np.abs(pool - pool.mean(0))
    spread = pool.std(0)
    # Rounding is no distance: parts that are the same under every edit are not told apart.
    told = spread > 1e-12 * np.abs(pool).max(0)
    distance = np.divide(distance, spread, out=np.zeros_like(distance), where=told)
    return distance[0], distance[1:]


def _share(own: Float[np.ndarray, " parts"], others: Float[np.ndarray, "draws parts"]) -> Float[np.ndarray, " parts"]:
    """The rank p-value; what is equal but for rounding counts as equal."""
    as_far = (others >= own * (1 - 1e-9)).sum(0)
    return (1 + as_far) / (1 + len(others))


def upper_p_values(
    values: Float[np.ndarray, " parts"], controls: Float[np.ndarray, "draws parts"]
) -> Float[np.ndarray, " parts"]:
    """One-sided p-value of each value among its controls: (1 + controls at least as large) / (1 + controls)."""
    return _share(values, controls)
