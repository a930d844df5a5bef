"""What a spectral edit is compared with: random subspaces of the same ranks, and mean-difference steering."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .covariance import CrossCovariance
from .errors import InputError
from .intervention import ActivationEdit
from .spectral import SpectralEdit, with_subspaces
from .subspaces import random_subspaces


def randomised(edit: SpectralEdit, seed: int) -> SpectralEdit:
    """The edit with subspaces of the same ranks in uniformly random directions (SEA.md section 6).

    An edit of high rank moves a choice between two answers by blurring it; this control shows how much of an effect
    any subspaces of these ranks would have. Everything else (centre, feature, ranks of each layer) is the edit's own.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {layer: random_subspaces(edit.subspaces[layer], generator) for layer in edit.layers}
    return with_subspaces(edit, drawn, f"random subspaces, seed {seed}")


@dataclass(frozen=True)
class MeanDifference(ActivationEdit):
    """Steering by the difference of means (CAA, arXiv 2312.06681): x + α (mean positive − mean negative).

    Attributes:
        site: where it acts.
        vectors: the difference of each layer, (units, d), float64.
        model_layers: layers of the model it was fitted on, None where unknown.
    """

    combines: ClassVar[tuple[str, ...]] = ("add",)

    site: str
    vectors: Mapping[int, Float[Tensor, "units d"]]
    model_layers: int | None = None
    signatures: Mapping[int, float] | None = field(default=None)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.vectors))

    @property
    def shape(self) -> tuple[int, int]:
        units, d = self.vectors[self.layers[0]].shape
        return units, d

    @property
    def n_layers(self) -> int | None:
        return self.model_layers

    @property
    def signature(self) -> Mapping[int, float] | None:
        return self.signatures

    def edit_units(
        self, x: Float[Tensor, "*batch units d"], layer: int, strength: float | int | Tensor, combine: str
    ) -> Float[Tensor, "*batch units d"]:
        if isinstance(strength, Tensor):
            strength = strength.to(x)[..., None]
        return x + strength * self.vectors[layer].to(x)


def mean_difference(covariance: CrossCovariance) -> MeanDifference:
    """Mean-difference steering from the same captured statistics as a spectral fit.

    Raises:
        InputError: the activations went through a feature map; a mean of φ(x) is no activation.
    """
    if not covariance.feature.is_identity:
        raise InputError(f"mean_difference needs feature 'identity', got {covariance.feature.name!r}")
    vectors = {}
    for layer in covariance.layers:
        _, positive, negative = covariance.means(layer)
        vectors[layer] = positive - negative
    return MeanDifference(
        covariance.site,
        vectors,
        covariance.provenance.get("model", {}).get("n_layers"),
        {layer: covariance.signature(layer)[0] for layer in covariance.layers},
    )
