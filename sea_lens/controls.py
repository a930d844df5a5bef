"""What a spectral edit is compared with: random subspaces of the same ranks, and mean-difference steering."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .arguments import as_integer
from .capture import capture, capture_options
from .covariance import CrossCovariance
from .demonstrations import Demonstration, Demonstrations
from .errors import InputError
from .fitting import fit
from .intervention import ActivationEdit
from .progress import tracked
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


def permuted(
    model: Any,
    edit: SpectralEdit,
    demonstrations: Iterable[Demonstration],
    draws: int = 8,
    seed: int = 0,
    *,
    batch_size: int = 16,
    progress: bool = False,
) -> list[SpectralEdit]:
    """The edit fitted anew with positives and negatives shuffled: what an analysis shows where there is nothing to see.

    Read and fitted as the edit was, at its ranks, from demonstrations whose positive and negative text are swapped by
    the toss of a coin. Each draw costs one `capture`.

    Args:
        model: the model that the edit was fitted on.
        edit: an edit from `capture` and `fit`.
        demonstrations: those that it was fitted from.
        draws: how many edits to return.
        seed: of the tosses.
        batch_size: demonstrations at a time.
        progress: show a progress bar.

    Raises:
        InputError: the edit was not fitted from captured activations.
        Otherwise as `capture`.
    """
    if not isinstance(demonstrations, Demonstrations):
        demonstrations = Demonstrations(demonstrations)
    draws, seed = as_integer(draws, "draws", least=0), as_integer(seed, "seed")
    how = capture_options(edit) | {"site": edit.site, "layers": edit.layers, "feature": edit.feature}
    centre, power = edit.options["centre"], edit.options["spectrum_power"]
    edits = []
    for draw in tracked(range(draws), "permutation control", draws, show=progress):
        shuffled = demonstrations.shuffled(seed * draws + draw)
        covariance = capture(model, shuffled, batch_size=batch_size, progress=False, **how)
        refitted = fit(covariance, rank=edit.ranks, centre=centre, spectrum_power=power)
        edits.append(with_subspaces(refitted, refitted.subspaces, f"positives and negatives shuffled, draw {draw}"))
    return edits


@dataclass(frozen=True, eq=False)
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
