"""Whether statistics are some that demonstrations can have."""

import math
from typing import Any

import torch
from einops import einsum
from torch import Tensor

from .._support.storage import ImpossibleError
from ..models.sites import Site
from .features import FeatureMap
from .statistics import Activations, Sums

_ROUNDING = 1e-9


def check_possible(covariance: Any) -> None:
    """Refuse statistics that no demonstrations have.

    Args:
        covariance: a `CrossCovariance`.

    Raises:
        InputError: saying what does not hold.
    """
    n, statistics = covariance.n, covariance.statistics
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
    if isinstance(statistics, Sums):
        _check_sums(statistics, covariance.feature)
        return
    assert isinstance(statistics, Activations)
    for index, layer in enumerate(covariance.layers):
        for kind, values in statistics.raw(index)._asdict().items() if n else ():
            if not torch.isfinite(values).all():
                raise ImpossibleError(f"the {kind} activations of layer {layer} hold NaN or infinite values")


def _check_sums(sums: Sums, feature: FeatureMap) -> None:
    """Refuse sums that no activations have.

    The sums of n values of φ lie within n times φ's range, and those of their products within n times the range of
    products; of one demonstration, the sum of outer products is the outer product of the sums. They were summed up in
    any order, so that all of this holds up to rounding.
    """
    n = sums.n
    low, high = feature.range
    ends = [a * b for a in (low, high) for b in (low, high)]
    products = (min(ends), max(ends)) if math.isfinite(low) and math.isfinite(high) else (-math.inf, math.inf)
    for totals, (least, most) in ((sums.outer, products), (sums.single, (low, high))):
        for total in totals:
            _check_total(total, n, least, most, feature.name)
    if n == 1:
        for outer, side in zip(sums.outer, sums.single[1:], strict=True):
            expected = einsum(sums.single.neutral, side, "layers units i, layers units j -> layers units i j")
            if not torch.allclose(outer, expected, rtol=_ROUNDING, atol=0):
                raise ImpossibleError("a sum of outer products is not the product of two activations")


def _check_total(total: Tensor, n: int, least: float, most: float, feature: str) -> None:
    if not torch.isfinite(total).all():
        raise ImpossibleError("a sum holds NaN or infinite values")
    if n == 0 and total.any():
        raise ImpossibleError("a sum is not zero, though it is of no demonstrations")
    slack = _ROUNDING * n
    if n and not ((total >= n * least - slack) & (total <= n * most + slack)).all():
        raise ImpossibleError(f"a sum is outside what {n} values of {feature!r} can sum up to")
