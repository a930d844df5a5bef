"""From a model and demonstrations to cross-covariances (docs/method.md 1 and 2): streamed once, or read and kept."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer
from .._support.processes import mine, of_first, summed, together
from .._support.progress import tracked
from ..edits.in_model import warn_of_installed
from ..edits.where import LayerChoice, choose_layers
from ..models.lens import Lens
from ..models.reading import Reading, ReadingPlan, Readings
from ..models.sites import Site
from ..models.vllm_engine import Engine, language_model
from ..texts.demonstrations import Demonstrations
from ..texts.items import Demonstration
from .covariance import CrossCovariance, refuse_non_finite
from .edit import SpectralEdit
from .features import FeatureMap, feature_map
from .layer_statistics import Three
from .statistics import Activations, InMemory, Sums, stacked
from .store import begin_store


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
    store: str | os.PathLike[str] | None = None,
) -> CrossCovariance:
    """Run the demonstrations through the model and keep what a fit needs.

    While they are fewer than the activations are wide, these are the activations in the model's dtype, else sums over
    them, whose memory does not depend on their number (docs/method.md 2.2).

    Args:
        model: a TransformerLens model, unedited or with whatever hooks the user has put there; or a vLLM engine
            (`vllm.LLM`), for many demonstrations (docs/method.md 6.14).
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
        store: a folder to keep the activations in, whatever their number, instead of memory. A capture that was
            interrupted goes on there, `CrossCovariance.load` opens it again, and a fit reads one layer at a time.

    Returns:
        Cross-covariances, on the CPU.

    Raises:
        FileError: the store cannot be written to, is damaged, or holds something else.
        InputError: unknown site, layer, position, neutral choice or feature, or a number out of range.
        MismatchError: `fit_site` has activations of another width than `site`, or the store is of another capture.
        UnsupportedModelError: the model has no hook point for the site.
        DemonstrationError: a text longer than the model's context; names it. Checked before any forward pass.
        ActivationError: NaN or infinite activations; names the layer and the demonstration.

    Example:
        >>> covariance = sl.capture(bed.model, bed.demonstrations)
        >>> covariance.n, covariance.layers, covariance.d
        (432, (0, 1, 2), 128)
    """
    lens = language_model(model)
    if isinstance(lens, Lens):
        warn_of_installed(model, "activations are captured")
    longest, seed = as_integer(max_new_tokens, "max_new_tokens", least=1), as_integer(seed, "seed")
    reading = Reading(site, fit_site, position, neutral, prepend_bos, longest, seed)
    batch_size = as_integer(batch_size, "batch_size", least=1)
    chosen = choose_layers(layers, range(lens.n_layers))
    demonstrations, mapped = Demonstrations.of(demonstrations), feature_map(feature)
    plan = reading.plan(lens, demonstrations, chosen, batch_size=batch_size)
    read = _ReadingOf(plan, demonstrations.names, site, chosen)
    empty = _empty(lens, reading, demonstrations, chosen, mapped)
    if store is not None:
        return _stored(empty, read, store, progress)
    device = lens.double_device if isinstance(lens, Lens) else torch.device("cpu")
    return _captured(empty, read, device if len(demonstrations) >= empty.d else None, progress)


@dataclass(frozen=True)
class _ReadingOf:
    """What is read of some demonstrations, refused where it is not finite."""

    plan: ReadingPlan
    names: Sequence[str]
    site: str
    layers: tuple[int, ...]

    def batches(self, numbers: Sequence[int], *, progress: bool = False) -> Iterator[tuple[list[int], Readings]]:
        """Some of the plan's batches: the indices of demonstrations, and their readings."""
        for indices, three in self.plan.read(numbers, progress=progress):
            for kind, values in three._asdict().items():
                refuse_non_finite(kind, values, [self.names[i] for i in indices], self.site, self.layers)
            yield indices, three


def _captured(
    empty: CrossCovariance, reading: _ReadingOf, device: torch.device | None, progress: bool
) -> CrossCovariance:
    """What was read, in memory: activations on the CPU, or their sums where there is a device to add them up on."""
    layout, numbers = empty.statistics.layout, mine(range(len(reading.plan.batches)))
    if device is not None:
        total = Sums.empty(layout, device)

        def added() -> list[Tensor]:
            for _, three in reading.batches(numbers, progress=progress):
                total.add(stacked(three), empty.feature)
            return [*total.outer, *total.single]

        summed(added)
        return replace(empty, statistics=replace(total, n=len(reading.names)).to("cpu"))

    def read() -> list[tuple[list[int], InMemory]]:
        found = reading.batches(numbers, progress=progress)
        return [(indices, InMemory(stacked([x.cpu() for x in three]))) for indices, three in found]

    found = [one for of_process in together(read) for one in of_process]
    order = torch.tensor([index for indices, _ in found for index in indices])
    return replace(empty, statistics=Activations(layout, tuple(part for _, part in found), order))


def _stored(
    empty: CrossCovariance, reading: _ReadingOf, folder: str | os.PathLike[str], progress: bool
) -> CrossCovariance:
    """What was read, in the shards of a folder; those that are there already are not read again."""
    batches, layout = reading.plan.batches, empty.statistics.layout
    store = of_first(lambda: begin_store(folder, empty.layers, empty.site, empty.provenance, batches, layout))
    missing = mine(of_first(store.missing))

    def write() -> None:
        for number in tracked(missing, "capturing activations", len(missing), show=progress):
            read = [[x.cpu() for x in three] for _, three in reading.batches(store.batches[number])]
            store.write(number, [torch.cat(sides) for sides in zip(*read, strict=True)])

    together(write)
    return replace(empty, statistics=store.read())


@dataclass(frozen=True)
class Captured:
    """Activations of demonstrations, kept on the CPU for several fits.

    Memory: three activations of every demonstration at every layer.

    Attributes:
        demonstrations: of what.
        covariance: what `capture` gives for them, with the identity for φ and its activations in one part.
    """

    demonstrations: Demonstrations
    covariance: CrossCovariance

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
        reading, chosen = Reading.recorded(edit.site, edit.provenance), tuple(edit.layers if layers is None else layers)
        return cls.read(model, reading, demonstrations, chosen, batch_size=batch_size, progress=progress)

    @classmethod
    def read(
        cls,
        model: Any,
        reading: Reading,
        demonstrations: Iterable[Demonstration],
        layers: tuple[int, ...],
        *,
        batch_size: int = 16,
        progress: bool = False,
    ) -> "Captured":
        """Read demonstrations."""
        lens, demonstrations = language_model(model), Demonstrations.of(demonstrations)
        plan = reading.plan(lens, demonstrations, layers, batch_size=batch_size)
        empty = _empty(lens, reading, demonstrations, layers, feature_map("identity"))
        found = _captured(empty, _ReadingOf(plan, demonstrations.names, reading.site, layers), None, progress)
        statistics = found.statistics
        assert isinstance(statistics, Activations)
        return cls(demonstrations, replace(found, statistics=statistics.in_one_part()))

    @property
    def _values(self) -> Three:
        statistics = self.covariance.statistics
        assert isinstance(statistics, Activations)
        (part,) = statistics.parts
        assert isinstance(part, InMemory)
        return part.values

    def drawn(self, indices: Sequence[int], feature: FeatureMap) -> CrossCovariance:
        """What `capture` gives for the demonstrations with these indices, each as often as it is named."""
        chosen = torch.tensor(indices, dtype=torch.int64)
        return self._with(self.demonstrations.picked(indices), self._values.each(lambda x: x[:, chosen]), feature)

    def neutral(self, layer: int) -> Float[Tensor, "n units d"]:
        """The neutral activation of each demonstration at a layer, float64."""
        return self._values.neutral[self.covariance.layers.index(layer)].double()

    def shuffled(self, seed: int, feature: FeatureMap) -> CrossCovariance:
        """What `capture` gives for `Demonstrations.shuffled`: positive and negative readings change roles.

        Nothing is read anew, since a reading depends on its text alone and is the same on either side.
        """
        shuffled = self.demonstrations.shuffled(seed)
        pairs = zip(shuffled, self.demonstrations, strict=True)
        place = rearrange(torch.tensor([new.positive != old.positive for new, old in pairs]), "n -> n 1 1")
        neutral, positive, negative = self._values
        sides = torch.where(place, negative, positive), torch.where(place, positive, negative)
        return self._with(shuffled, Three(neutral, *sides), feature)

    def _with(self, demonstrations: Demonstrations, values: Three, feature: FeatureMap) -> CrossCovariance:
        return replace(
            self.covariance,
            feature=feature,
            statistics=Activations(self.covariance.statistics.layout, (InMemory(values),)),
            provenance={**self.covariance.provenance, "demonstrations": [demonstrations.record]},
        )


def _empty(
    lens: Lens | Engine, reading: Reading, demonstrations: Demonstrations, layers: tuple[int, ...], feature: FeatureMap
) -> CrossCovariance:
    """Statistics of nothing yet, which say what they will be of."""
    units, width = Site.of(reading.site).shape(lens)
    provenance = {"model": lens.record, **reading.record, "demonstrations": [demonstrations.record]}
    return CrossCovariance.empty(layers, units, width, site=reading.site, feature=feature, provenance=provenance)
