"""How the activation of a text is read, and reading it for demonstrations (docs/method.md 1.3 and 1.4)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer
from .._support.progress import tracked
from ..errors import InputError, MismatchError
from ..texts.demonstrations import Demonstrations
from .cache_probe import cached_reading
from .check import ensure_usable
from .demonstration_texts import DemonstrationTexts
from .lens import FINAL_NORM, Lens
from .readout import Norm, probe_norm
from .sites import SITES, Site
from .text_trees import batches
from .tree_passes import TreeReader
from .vllm_engine import Engine
from .vllm_reader import EngineReader

POSITIONS = ("last", "mean", "random")
NEUTRALS = ("prompt", "generated")
HIDDEN_STATES = "hidden_states"
# Tokens that a pass has at most (docs/method.md 1.3): beyond, a token costs hardly less, and memory grows.
TOKENS_ON_CPU, TOKENS_ON_ACCELERATOR = 1024, 4096


class Readings(NamedTuple):
    """The three activations of each of some demonstrations: of one token in the model's dtype, a mean in float64."""

    neutral: Float[Tensor, "n layers units d"]
    positive: Float[Tensor, "n layers units d"]
    negative: Float[Tensor, "n layers units d"]


@dataclass(frozen=True)
class Reading:
    """How the activation of a text is read; fields as in `capture`.

    Attributes:
        site: what the activation is for.
        fit_site: where it is read: one of the sites of the same width, or "hidden_states"; None for `site` itself.
        position: which tokens' activation: "last", "mean" or "random".
        neutral: which text is the neutral one: "prompt" or "generated".
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        max_new_tokens: longest continuation for "generated".
        seed: for "random".

    Raises:
        InputError: an unknown site, position or neutral choice, or a number out of range.
        MismatchError: `fit_site` has activations of another width than `site`.
    """

    site: str
    fit_site: str | None = None
    position: str = "last"
    neutral: str = "prompt"
    prepend_bos: bool = True
    max_new_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        per_head = Site.of(self.site).per_head
        where = self.read_site
        if where != HIDDEN_STATES and where not in SITES:
            raise InputError(f"unknown fit_site {where!r}: expected one of {', '.join(SITES)}, {HIDDEN_STATES}")
        # The residual stream is read whole.
        if per_head != (where in SITES and Site.of(where).per_head):
            raise MismatchError(f"fit_site {where!r} and site {self.site!r} have activations of different widths")
        for name, given, known in (("position", self.position, POSITIONS), ("neutral", self.neutral, NEUTRALS)):
            if given not in known:
                raise InputError(f"unknown {name} {given!r}: expected one of {', '.join(known)}")
        as_integer(self.max_new_tokens, "max_new_tokens", least=1)
        as_integer(self.seed, "seed")

    @property
    def read_site(self) -> str:
        """Where activations are read."""
        return self.site if self.fit_site is None else self.fit_site

    @property
    def record(self) -> dict[str, Any]:
        """What a file says of it, as JSON values, without the options that this reading does not use."""
        kept = {name: value for name, value in asdict(self).items() if name != "site"} | {"fit_site": self.read_site}
        if self.neutral != "generated":
            del kept["max_new_tokens"]
        if self.position != "random":
            del kept["seed"]
        return kept

    @staticmethod
    def recorded(site: str, record: Mapping[str, Any]) -> "Reading":
        """The reading that a provenance records.

        Raises:
            InputError: it records none.
        """
        if "position" not in record:
            raise InputError("this edit was not fitted from captured activations, so it does not say how to read them")
        names = ("fit_site", "position", "neutral", "prepend_bos", "max_new_tokens", "seed")
        return Reading(site, **{name: record[name] for name in names if name in record})

    def plan(
        self,
        lens: Lens | Engine,
        demonstrations: Demonstrations,
        layers: Sequence[int],
        *,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
    ) -> "ReadingPlan":
        """What is read together; arguments and errors as in `ReadingPlan.of`."""
        return ReadingPlan.of(
            [self], lens, demonstrations, layers, batch_size=batch_size, tokens_per_batch=tokens_per_batch
        )

    def read(
        self,
        lens: Lens,
        demonstrations: Demonstrations,
        layers: Sequence[int],
        *,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        progress: bool = False,
    ) -> Iterator[tuple[list[int], Readings]]:
        """Batches of demonstrations: their indices, and their readings; arguments and errors as in `ReadingPlan`."""
        plan = self.plan(lens, demonstrations, layers, batch_size=batch_size, tokens_per_batch=tokens_per_batch)
        return plan.read(progress=progress)


class ReadingPlan:
    """Which demonstrations are read together; readings of all of them or of some batches, of one site or of several.

    A plan depends on the texts, the model and the numbers that `of` is given, and on nothing that was measured: so that
    what was read of some batches can be gone on from later, and shared between processes, bit for bit.

    Attributes:
        batches: indices of demonstrations, those that share the longest beginnings and have the longest texts first.
    """

    def __init__(
        self, reader: TreeReader | EngineReader, points: Sequence["_Points"], batches: list[list[int]]
    ) -> None:
        self.batches, self._reader, self._points = batches, reader, points

    @classmethod
    def of(
        cls,
        readings: Sequence[Reading],
        lens: Lens | Engine,
        demonstrations: Demonstrations,
        layers: Sequence[int],
        *,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
    ) -> "ReadingPlan":
        """Encode all texts, and plan how they are read.

        Args:
            readings: of one site or several, alike in everything else.
            lens: the model.
            demonstrations: whose three texts are read.
            layers: at which layers.
            batch_size: demonstrations at a time, at most; by default as many as `tokens_per_batch` allows.
            tokens_per_batch: tokens that a forward pass has at most, padding counted (a longer text is read by itself);
                by default 1,024 on a CPU, 4,096 on an accelerator (docs/method.md 1.3), and as many as an engine reads.

        Raises:
            DemonstrationError: a text that does not fit the context; names it.
            UnsupportedModelError: the model has no hook point for a site, or is not what it should be.
            InputError: the model drops out units at random, a number is out of range, or readings that cannot be made
                in one pass.
        """
        first = readings[0]
        most = None if batch_size is None else as_integer(batch_size, "batch_size", least=1)
        if tokens_per_batch is None:
            tokens_per_batch = _most_tokens(lens)
        tokens = as_integer(tokens_per_batch, "tokens_per_batch", least=1)
        if any(replace(one, site=first.site, fit_site=first.fit_site) != first for one in readings):
            raise InputError("readings of one pass may differ in their sites alone")
        if isinstance(lens, Lens):
            ensure_usable(lens)
        points = [_Points.of(lens, one, layers) for one in readings]
        texts = DemonstrationTexts.of(
            lens,
            demonstrations,
            position=first.position,
            seed=first.seed,
            prepend_bos=first.prepend_bos,
            max_new_tokens=first.max_new_tokens if first.neutral == "generated" else None,
            batch_size=most,
        )
        names = dict.fromkeys(name for one in points for name in one.names)
        if isinstance(lens, Engine):
            engine_reader = EngineReader(lens, texts, list(names), mean=first.position == "mean")
            return cls(engine_reader, points, batches(texts.trees, tokens, most, equal_stems=False))
        reader = TreeReader(lens, texts, list(names), max(layers) + 1, mean=first.position == "mean", tokens=tokens)
        found = batches(texts.trees, tokens, most, equal_stems=not cached_reading(lens).padded)
        return cls(reader, points, found)

    def read(
        self, numbers: Iterable[int] | None = None, *, progress: bool = False
    ) -> Iterator[tuple[list[int], Readings]]:
        """`read_sites` of a plan for one site."""
        return ((indices, found[0]) for indices, found in self.read_sites(numbers, progress=progress))

    def read_sites(
        self, numbers: Iterable[int] | None = None, *, progress: bool = False
    ) -> Iterator[tuple[list[int], tuple[Readings, ...]]]:
        """Read batches.

        Args:
            numbers: which of `batches`; all by default.
            progress: show a progress bar.

        Yields:
            The indices of a batch, and their readings at each site, on the model's device.

        Raises:
            DemonstrationError: memory does not suffice for one text; names it.

        Warns:
            SeaLensWarning: memory does not suffice for a batch, which is then read in parts; said once.
        """
        chosen = [as_integer(number, "batch") for number in (range(len(self.batches)) if numbers is None else numbers)]
        ahead = None
        for place, number in tracked(enumerate(chosen), "capturing activations", len(chosen), show=progress):
            found = self._reader.read(self.prepared(number) if ahead is None else ahead)
            # While an accelerator works on this batch.
            ahead = self.prepared(chosen[place + 1]) if place + 1 < len(chosen) else None
            yield list(self.batches[number]), tuple(points.readings(found) for points in self._points)

    def prepared(self, number: int) -> Any:
        """What is run for a batch."""
        return self._reader.prepare(self.batches[number])


@dataclass(frozen=True)
class _Points:
    """Where the activations of a site are read.

    Attributes:
        site: what the activations are for.
        names: hook points, one for each layer.
        norm: the final norm, which the last of them stands in, before its gain and bias; None elsewhere.
        dtype: what behind it is given in.
    """

    site: Site
    names: tuple[str, ...]
    norm: Norm | None = None
    dtype: torch.dtype = torch.float64

    @classmethod
    def of(cls, lens: Lens | Engine, reading: Reading, layers: Sequence[int]) -> "_Points":
        site = Site.of(reading.site)
        # An engine refuses the latter by name.
        if reading.read_site != HIDDEN_STATES or isinstance(lens, Engine):
            return cls(site, tuple(lens.point(reading.read_site, layer) for layer in layers))
        last = lens.n_layers - 1 if lens.has_final_norm else None
        names = (lens.norm_output(FINAL_NORM) if layer == last else lens.point("resid_post", layer) for layer in layers)
        dtype = torch.float64 if reading.position == "mean" else lens.dtype
        return cls(site, tuple(names), probe_norm(lens, FINAL_NORM) if last in layers else None, dtype)

    def readings(self, found: Mapping[str, Tensor]) -> Readings:
        """The readings of some demonstrations, from what each of their texts has at the hook points."""
        of_layers = []
        for name in self.names:
            x = found[name]
            if self.norm is not None and name == self.names[-1]:
                x = (x.double() * self.norm.gain + self.norm.bias).to(self.dtype)
            of_layers.append(self.site.to_units(x))
        stacked = torch.stack([x.to(of_layers[0].device) for x in of_layers], dim=1)
        # Texts come in threes, one for each text of a demonstration.
        return Readings(*(stacked[kind::3] for kind in range(3)))


def _most_tokens(lens: Lens | Engine) -> int:
    if isinstance(lens, Engine):
        return lens.tokens_per_pass
    return TOKENS_ON_CPU if lens.device.type == "cpu" else TOKENS_ON_ACCELERATOR
