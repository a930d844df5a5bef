"""The unit direction from wanted to unwanted texts, which ablation takes out and rotation turns away from."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer
from ..errors import ActivationError, InputError
from ..models.sites import Site
from ..spectral.covariance import CrossCovariance, as_covariance


def refuse_other_statistics(given: Any, method: str) -> None:
    """Refuse statistics that hold no activations as they are, or of no demonstrations, and what is no statistics.

    Raises:
        InputError: they went through a feature map, or are something else.
        ActivationError: there are none.
    """
    covariance = as_covariance(given)
    if not covariance.feature.is_identity:
        raise InputError(f"{method} needs feature 'identity', got {covariance.feature.name!r}")
    if covariance.n == 0:
        raise ActivationError("no demonstrations to fit from")


def choose_layer(covariance: CrossCovariance, layer: Any) -> int | None:
    """The layer whose direction serves all layers, None where each has its own.

    Raises:
        InputError: it was not captured, or heads are to share a direction across layers.
    """
    if layer is None:
        return None
    chosen = as_integer(layer, "layer")
    if chosen not in covariance.layers:
        raise InputError(f"layer {chosen} was not captured: expected one of {list(covariance.layers)}")
    if Site.of(covariance.site).per_head:
        raise InputError(
            f"layer {chosen}: heads of different layers have spaces of their own, and no direction in common: expected "
            f"layer=None at site {covariance.site!r}"
        )
    return chosen


def feature_direction(covariance: CrossCovariance, layer: int) -> Float[Tensor, "units d"]:
    """(mean negative − mean positive) at length one, for each unit of a layer; float64, on the CPU.

    Raises:
        ActivationError: the means of a unit are equal, or overflow; names the layer and the head.
    """
    means = covariance.at(layer).means
    difference = (means.negative - means.positive).cpu()
    sizes = difference.abs().amax(-1)
    for unit, size in enumerate(sizes.tolist()):
        if not 0 < size < torch.inf:
            raise ActivationError(
                f"{place(covariance, layer, unit)}: positive and negative activations have one mean, or one that is "
                f"not finite: there is no direction between them"
            )
    # Scaled first, since the squares of very small or large entries are not numbers any more.
    return torch.nn.functional.normalize(difference / sizes[:, None], dim=-1, eps=0.0)


def place(covariance: CrossCovariance, layer: int, unit: int) -> str:
    """What errors call a unit."""
    return f"layer {layer}, head {unit}" if Site.of(covariance.site).per_head else f"layer {layer}"
