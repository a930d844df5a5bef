"""From a model and demonstrations to cross-covariances (docs/method.md 1 and 2): streamed once, or read and kept."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer
from ..edits.in_model import warn_of_installed
from ..edits.where import LayerChoice, choose_layers
from ..models.lens import Lens
from ..models.reading import Reading, Readings
from ..models.sites import Site
from ..texts.demonstrations import Demonstrations
from ..texts.items import Demonstration
from .covariance import CrossCovariance
from .edit import SpectralEdit
from .features import FeatureMap, feature_map


def capture(
    model: Any,
    demonstrations: Iterable[Demonstration],
    site: str = "mlp_out",
    layers: LayerChoice = "all",
    position: str = "last",
    neutral: str = "prompt",
    feature: str | FeatureMap = "identity",
    batch_size: int = 16,
    progress: bool = True,
    *,
    fit_site: str | None = None,
    prepend_bos: bool = True,
    max_new_tokens: int = 32,
    seed: int = 0,
) -> CrossCovariance:
    """Run the demonstrations through the model and sum up what a fit needs; memory does not depend on their number.

    Args:
        model: a TransformerLens model, unedited or with whatever hooks the user has put there.
        demonstrations: at least one; N of them.
        site: what the edit will act on: "mlp_out", "attn_out", "resid_post", or "z" (each head on its own).
        layers: which layers, as in `choose_layers`, by default all.
        position: the activation of a text is that of its "last" token, the "mean" over its tokens, or that of a
            "random" one (docs/method.md 1.3). BOS does not count as a token of the text, unless it is all there is:
            its activation is the same for every text and often many times larger than the rest.
        neutral: the neutral text is the "prompt" alone, or the prompt with the model's own greedy continuation
            ("generated", as the authors' code does; docs/method.md 1.4).
        feature: the feature map φ, by name or your own.
        batch_size: demonstrations at a time.
        progress: show a progress bar.
        fit_site: read from another site than the edit will act on: one of the sites of the same width, or
            "hidden_states", the residual stream, at the last layer after the final norm, as the authors' code does.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        max_new_tokens: longest continuation for "generated".
        seed: for "random"; which token is read depends on the seed and the text alone, not on the batches.

    Returns:
        Cross-covariances, streamed in float64 on the model's device and returned on the CPU.

    Raises:
        InputError: unknown site, layer, position, neutral choice or feature, or a number out of range.
        MismatchError: `fit_site` has activations of another width than `site`.
        UnsupportedModelError: the model has no hook point for the site.
        DemonstrationError: a text longer than the model's context; names it. Checked before any forward pass.
        ActivationError: NaN or infinite activations; names the layer and the demonstration.

    Example:
        >>> covariance = sl.capture(bed.model, bed.demonstrations)
        >>> covariance.n, covariance.layers, covariance.d
        (432, (0, 1, 2), 128)
    """
    lens = Lens.of(model)
    warn_of_installed(model, "activations are captured")
    longest, seed = as_integer(max_new_tokens, "max_new_tokens", least=1), as_integer(seed, "seed")
    reading = Reading(site, fit_site, position, neutral, prepend_bos, longest, seed)
    batch_size = as_integer(batch_size, "batch_size", least=1)
    chosen = choose_layers(layers, range(lens.n_layers))
    demonstrations = Demonstrations.of(demonstrations)
    empty = _empty(lens, reading, demonstrations, chosen, feature_map(feature))
    batches = reading.read(lens, demonstrations, chosen, batch_size=batch_size, progress=progress)
    return _summed(empty, demonstrations, batches).to("cpu")


@dataclass(frozen=True)
class Captured:
    """Readings of demonstrations, kept on the CPU for several fits.

    Memory: three float64 activations of every demonstration at every layer.

    Attributes:
        lens: the model.
        reading: how they were read.
        demonstrations: of what.
        layers: at which layers.
        batches: indices of demonstrations, and their readings.
    """

    lens: Lens
    reading: Reading
    demonstrations: Demonstrations
    layers: tuple[int, ...]
    batches: tuple[tuple[list[int], Readings], ...]

    @classmethod
    def of(
        cls,
        model: Any,
        edit: SpectralEdit,
        demonstrations: Iterable[Demonstration],
        layers: Sequence[int] | None = None,
        *,
        batch_size: int = 16,
        progress: bool = False,
    ) -> "Captured":
        """Read demonstrations as those of an edit were, by default at all of its layers.

        Raises:
            InputError: the edit was not fitted from captured activations.
        """
        lens, reading = Lens.of(model), Reading.recorded(edit.site, edit.provenance)
        demonstrations, chosen = Demonstrations.of(demonstrations), tuple(edit.layers if layers is None else layers)
        read = reading.read(lens, demonstrations, chosen, batch_size=batch_size, progress=progress)
        batches = tuple((indices, Readings(*(x.cpu() for x in three))) for indices, three in read)
        return cls(lens, reading, demonstrations, chosen, batches)

    def drawn(self, indices: Sequence[int], feature: FeatureMap) -> CrossCovariance:
        """What `capture` gives for the demonstrations with these indices, each as often as it is named."""
        order = torch.tensor([i for some, _ in self.batches for i in some]).argsort()
        chosen = order[torch.tensor(indices, dtype=torch.int64)]
        whole = Readings(*(torch.cat([three[kind] for _, three in self.batches])[chosen] for kind in range(3)))
        picked = Demonstrations(
            [self.demonstrations[i] for i in indices], [self.demonstrations.names[i] for i in indices]
        )
        empty = _empty(self.lens, self.reading, picked, self.layers, feature).to("cpu")
        return _summed(empty, picked, [(list(range(len(indices))), whole)])

    def neutral(self, layer: int) -> Float[Tensor, "n units d"]:
        """The neutral activation of each demonstration at a layer."""
        found = torch.cat([three.neutral[:, self.layers.index(layer)] for _, three in self.batches])
        return found[torch.tensor([i for indices, _ in self.batches for i in indices]).argsort()]

    def shuffled(self, seed: int, feature: FeatureMap) -> CrossCovariance:
        """What `capture` gives for `Demonstrations.shuffled`: positive and negative readings change roles.

        Nothing is read anew, since a reading depends on its text alone and is the same on either side.
        """
        shuffled = self.demonstrations.shuffled(seed)
        batches = []
        for indices, (neutral, positive, negative) in self.batches:
            swapped = torch.tensor([shuffled[i].positive != self.demonstrations[i].positive for i in indices])
            place = rearrange(swapped, "n -> n 1 1 1")
            sides = torch.where(place, negative, positive), torch.where(place, positive, negative)
            batches.append((indices, Readings(neutral, *sides)))
        empty = _empty(self.lens, self.reading, shuffled, self.layers, feature).to("cpu")
        return _summed(empty, shuffled, batches)


def _empty(
    lens: Lens, reading: Reading, demonstrations: Demonstrations, layers: tuple[int, ...], feature: FeatureMap
) -> CrossCovariance:
    """Statistics of nothing yet, which say what they will be of."""
    units, width = Site.of(reading.site).shape(lens)
    provenance = {"model": lens.record, **reading.record, "demonstrations": [demonstrations.record]}
    return CrossCovariance.empty(
        layers,
        units,
        width,
        site=reading.site,
        feature=feature,
        provenance=provenance,
        device=lens.double_device,
    )


def _summed(
    statistics: CrossCovariance, demonstrations: Demonstrations, batches: Iterable[tuple[list[int], Readings]]
) -> CrossCovariance:
    for indices, three in batches:
        names = [demonstrations.names[i] for i in indices]
        neutral, positive, negative = (x.to(statistics.sum_neutral.device) for x in three)
        statistics = statistics.updated(neutral, positive, negative, names)
    return statistics
