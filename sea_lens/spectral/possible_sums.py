"""Whether sums over activations are some that activations can have."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from einops import einsum

from .._support.storage import ImpossibleError
from ..models.sites import Site

_ROUNDING = 1e-9


def check_possible(covariance: Any, names: Sequence[str]) -> None:
    """Refuse sums that no demonstrations have.

    The sums of n values of φ lie within n times φ's range, and those of their products within n times the range of
    products; of one demonstration, the sum of outer products is the outer product of the sums. They were summed up in
    any order, so that all of this holds up to rounding.

    Args:
        covariance: a `CrossCovariance`.
        names: what they are called.

    Raises:
        InputError: saying what does not hold.
    """
    n = covariance.n
    for name in names:
        if not torch.isfinite(getattr(covariance, name)).all():
            raise ImpossibleError(f"{name} holds NaN or infinite values")
    if covariance.units > 1 and not Site.of(covariance.site).per_head:
        raise ImpossibleError(f"site {covariance.site!r} has one unit a layer, not {covariance.units}")
    sources = covariance.provenance.get("demonstrations")
    if sources is not None and sum(one["n"] for one in sources) != n:
        raise ImpossibleError(f"{n} demonstrations cannot come of {sources}")
    model = covariance.provenance.get("model", {})
    shape = ("n_heads", "d_head") if Site.of(covariance.site).per_head else (None, "d_model")
    if any(
        model.get(name, found) != found for name, found in zip(shape, (covariance.units, covariance.d), strict=True)
    ):
        raise ImpossibleError(f"it is of another width or number of heads than its model, {dict(model)}")
    if any(layer >= model.get("n_layers", math.inf) for layer in covariance.layers):
        raise ImpossibleError(f"it has layers {list(covariance.layers)} of a model of {model['n_layers']}")
    low, high = covariance.feature.range
    ends = [a * b for a in (low, high) for b in (low, high)]
    products = (min(ends), max(ends)) if math.isfinite(low) and math.isfinite(high) else (-math.inf, math.inf)
    slack = _ROUNDING * covariance.n
    for name in names:
        total, (least, most) = getattr(covariance, name), products if "outer" in name else (low, high)
        if n == 0 and total.any():
            raise ImpossibleError(f"{name} is not zero, though it is of no demonstrations")
        if covariance.n and not ((total >= n * least - slack) & (total <= n * most + slack)).all():
            raise ImpossibleError(f"{name} is outside what {n} values of {covariance.feature.name!r} can sum up to")
    if n == 1:
        pattern = "layers units i, layers units j -> layers units i j"
        for outer, side in (("sum_outer_positive", "sum_positive"), ("sum_outer_negative", "sum_negative")):
            expected = einsum(covariance.sum_neutral, getattr(covariance, side), pattern)
            if not torch.allclose(getattr(covariance, outer), expected, rtol=_ROUNDING, atol=0):
                raise ImpossibleError(f"{outer} is not the product of two activations")
