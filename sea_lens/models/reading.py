"""How the activation of a text is read, and reading it for demonstrations (docs/method.md 1.3 and 1.4)."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer
from .._support.progress import tracked
from ..errors import InputError, MismatchError
from ..texts.demonstrations import Demonstrations
from ..texts.items import Demonstration
from .check import ensure_usable
from .decoding import continue_prompts
from .lens import FINAL_NORM, Lens
from .readout import probe_norm
from .sites import SITES, Site
from .tokens import bos_token, encode, pad

POSITIONS = ("last", "mean", "random")
NEUTRALS = ("prompt", "generated")
HIDDEN_STATES = "hidden_states"


class Readings(NamedTuple):
    """The three activations of each of some demonstrations, float64."""

    neutral: Float[Tensor, "n layers units d"]
    positive: Float[Tensor, "n layers units d"]
    negative: Float[Tensor, "n layers units d"]


@dataclass(frozen=True)
class Place:
    """Where the activation of one text stands: tokens start to stop of one sequence of a batch.

    Attributes:
        sequence: which one of the batch.
        start, stop: the text's first token behind BOS (BOS where it is all there is), and the place behind its last.
        seed: checksum of the seed and the tokens, which position "random" goes by (docs/method.md 1.3).
    """

    sequence: int
    start: int
    stop: int
    seed: int

    def positions(self, position: str) -> slice:
        """The positions of the text that are averaged over."""
        if position == "last":
            return slice(self.stop - 1, self.stop)
        if position == "random":
            picked = self.start + self.seed % (self.stop - self.start)
            return slice(picked, picked + 1)
        return slice(self.start, self.stop)


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

    def plan(self, lens, demonstrations, layers, *, batch_size=16, tokens_per_batch=None):
        class Plan:
            def __init__(plan):
                n = len(demonstrations)
                order = sorted(range(n), key=lambda i: -max(len(demonstrations[i].positive), len(demonstrations[i].negative)))
                plan.batches = [order[a : a + batch_size] for a in range(0, n, batch_size)]

            def read(plan, numbers=None, *, progress=False):
                for number in range(len(plan.batches)) if numbers is None else numbers:
                    indices = plan.batches[number]
                    some = Demonstrations([demonstrations[i] for i in indices], [demonstrations.names[i] for i in indices])
                    for local, three in self.read(lens, some, layers, batch_size=batch_size):
                        yield [indices[i] for i in local], three

        return Plan()

    def read(
        self,
        lens: Lens,
        demonstrations: Demonstrations,
        layers: Sequence[int],
        *,
        batch_size: int = 16,
        progress: bool = False,
    ) -> Iterator[tuple[list[int], Readings]]:
        """Batches of demonstrations, those of the longest texts first: their indices, and their readings.

        All texts are encoded before the first batch is read.

        Args:
            lens: the model.
            demonstrations: whose three texts are read.
            layers: at which layers.
            batch_size: demonstrations at a time.
            progress: show a progress bar.

        Raises:
            DemonstrationError: a text that does not fit the context; names it.
            UnsupportedModelError: the model has no hook point for the site, or is not what it should be.
            InputError: the model drops out units at random.
        """
        batch_size = as_integer(batch_size, "batch_size", least=1)
        ensure_usable(lens)
        names, convert = _points(lens, self.read_site, layers)
        texts = [
            _encoded(lens, *named, self.prepend_bos) for named in zip(demonstrations.names, demonstrations, strict=True)
        ]
        if self.neutral == "generated":
            prompts = [sequences[0] for sequences in texts]
            continued = continue_prompts(lens, prompts, self.max_new_tokens, batch_size=batch_size)
            texts = [(prompt + more, *rest) for (prompt, *rest), more in zip(texts, continued, strict=True)]
        first_token = 1 if self.prepend_bos and bos_token(lens) is not None else 0
        order = sorted(range(len(texts)), key=lambda i: -max(map(len, texts[i])))
        starts = range(0, len(order), batch_size)
        site = Site.of(self.site)
        for start in tracked(starts, "capturing activations", len(starts), show=progress):
            indices = order[start : start + batch_size]
            sequences, places = _plan([texts[i] for i in indices], first_token, self.seed)
            tokens, mask = pad(sequences)

            def gather(x: Tensor, name: str, places: list[Place] = places) -> Float[Tensor, "places units d"]:
                chosen = (x[place.sequence, place.positions(self.position)] for place in places)
                values = [reduce(x.double(), "pos ... -> ...", "mean") for x in chosen]
                return site.to_units(convert(torch.stack(values), name))

            with torch.no_grad():
                seen = lens.read(tokens, mask, names, reduce=gather)
            stacked = torch.stack([seen[name] for name in names], dim=1)
            # Places come in threes, one for each text of a demonstration.
            yield indices, Readings(*(stacked[kind::3] for kind in range(3)))


def _points(lens: Lens, read_site: str, layers: Sequence[int]) -> tuple[list[str], Callable[[Tensor, str], Tensor]]:
    """Hook points to read, one for each layer, and what turns a reading into the site's activation."""
    if read_site != HIDDEN_STATES:
        return [lens.point(read_site, layer) for layer in layers], lambda x, name: x
    norm = probe_norm(lens, FINAL_NORM)
    normalized = lens.norm_output(FINAL_NORM)
    last = lens.n_layers - 1 if lens.has_final_norm else None
    names = [normalized if layer == last else lens.point("resid_post", layer) for layer in layers]
    return names, lambda x, name: x * norm.gain + norm.bias if name == normalized else x


def _encoded(lens: Lens, name: str, demonstration: Demonstration, prepend_bos: bool) -> tuple[list[int], ...]:
    return tuple(
        encode(lens, getattr(demonstration, kind), prepend_bos=prepend_bos, what=f"{name}, {kind} text,")
        for kind in Readings._fields
    )


def _plan(texts: Sequence[tuple[list[int], ...]], first_token: int, seed: int) -> tuple[list[list[int]], list[Place]]:
    """Sequences to run, and where in them each text is read, three places for each demonstration.

    In a causal model a text that begins another is computed along with it: a prompt costs no sequence of its own
    where its tokens begin those of the positive text, as they usually do.
    """
    sequences: list[list[int]] = []
    places: list[Place] = []
    for neutral, positive, negative in texts:
        base = len(sequences)
        sequences += [positive, negative]
        if positive[: len(neutral)] == neutral:
            host = base
        else:
            sequences.append(neutral)
            host = base + 2
        for tokens, sequence in ((neutral, host), (positive, base), (negative, base + 1)):
            start = min(first_token, len(tokens) - 1)
            places.append(Place(sequence, start, len(tokens), _seed_of(tokens, seed)))
    return sequences, places


def _seed_of(tokens: Sequence[int], seed: int) -> int:
    return zlib.crc32(f"{seed} {' '.join(map(str, tokens))}".encode())
