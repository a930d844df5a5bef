"""Steering by the difference of means (CAA; Rimsky et al. 2024, arXiv 2312.06681; docs/method.md 5.1)."""

from dataclasses import dataclass
from typing import ClassVar

from .._support.versions import versions
from ..edits.where import Defaults
from ..spectral.covariance import CrossCovariance
from ..spectral.signatures import signature
from .feature_directions import refuse_other_statistics
from .steering import STEERED, Steering


@dataclass(frozen=True, eq=False)
class MeanDifference(Steering):
    """x + α (mean positive − mean negative): made by `mean_difference`."""

    kind: ClassVar[str] = "mean-difference edit"


def mean_difference(covariance: CrossCovariance) -> MeanDifference:
    """Mean-difference steering from the same captured statistics as a spectral fit.

    As in the paper the prompt is left alone: the edit acts from the prompt's last token on, unless `positions` or
    `with_defaults` says otherwise (docs/method.md 5.1).

    Args:
        covariance: from `capture`, with the identity as its feature map.

    Raises:
        InputError: no statistics, or the activations went through a feature map; a mean of φ(x) is no activation.
        ActivationError: no demonstrations.
    """
    refuse_other_statistics(covariance, "mean_difference")
    vectors, signatures = {}, {}
    for layer in covariance.layers:
        means = covariance.at(layer).means
        vectors[layer] = means.positive - means.negative
        signatures[layer] = signature(means)[0]
    return MeanDifference(
        covariance.site,
        vectors,
        signatures,
        {**covariance.provenance, "versions": versions()},
        defaults=Defaults(positions=STEERED),
    )
