"""What each step's passes take, from the package's own code, run on the batch that takes the most.

Passes and tokens are those of all texts; memory is that of the largest batch, since no batch outlives its pass.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from ..contributions.direct import direct_contributions
from ..contributions.heads import SAMPLE
from ..contributions.integral import FIRST_NODES, MAX_NODES, node, outside_inference_mode
from ..contributions.layers import by_layer
from ..contributions.patching import all_heads, patched
from ..contributions.study import Study
from ..evaluation.benchmark import Item
from ..evaluation.run import Task, evaluate
from ..measure.scorer import EncodedContrasts, Scorer
from ..models.cache import Past
from ..models.demonstration_texts import DemonstrationTexts
from ..models.lens import Lens
from ..models.reading import Reading
from ..models.sites import Site
from ..models.text_trees import Passes, Rows, batches, passes
from ..models.tokens import batches as padded
from ..spectral.edit import SpectralEdit
from ..spectral.features import feature_map
from ..spectral.subspaces import Subspaces
from ..texts.demonstrations import Contrasts, Demonstrations
from .empty_models import EmptyModel

# Items of a benchmark of which passes are counted.
COUNTED_ITEMS = 32


@dataclass(frozen=True)
class Counts:
    """Passes of a step, the tokens that they read, and the bytes that they take beside the weights."""

    memory: int
    forward: int
    tokens: int
    backward: int = 0


@dataclass(frozen=True)
class CountedSteps:
    """The steps on one model and some texts.

    Attributes:
        model: without numbers.
        demonstrations, contrasts: the texts.
        site, layers: what is edited, and where.
        rank: directions of each side.
        batch_size: as every call takes it.
        tokens_per_batch: tokens of a pass that reads demonstrations, at most.
        prepend_bos: one BOS in front of every text.
    """

    model: EmptyModel
    demonstrations: Demonstrations
    contrasts: Contrasts
    site: str
    layers: tuple[int, ...]
    rank: int
    batch_size: int
    tokens_per_batch: int
    prepend_bos: bool = True

    def capture(self) -> Counts:
        """Reading the demonstrations."""
        reading, lens = Reading(self.site, prepend_bos=self.prepend_bos), self.model.lens
        texts = DemonstrationTexts.of(
            lens, self.demonstrations, position=reading.position, seed=0, prepend_bos=self.prepend_bos
        )
        found = batches(texts.trees, self.tokens_per_batch, self.batch_size, equal_stems=False)
        planned = [
            passes([texts.trees[number] for number in batch], self.tokens_per_batch, share=True) for batch in found
        ]
        rows = [one for some in planned for one in _rows_of(some)]
        largest = max(range(len(found)), key=lambda number: _cells(planned[number]))

        def read(lens: Lens) -> None:
            some = self.demonstrations.picked(found[largest])
            plan = reading.plan(
                lens,
                some,
                range(lens.n_layers),
                batch_size=self.batch_size,
                tokens_per_batch=self.tokens_per_batch,
            )
            for _ in plan.read():
                pass

        memory = self.model.most(read, max(self.layers) + 1)
        return Counts(memory, len(rows), sum(len(one.of) * _width(one) for one in rows))

    def effect(self) -> Counts:
        """The unedited and the edited run over the contrasts."""
        runs = 2
        return Counts(
            self._most(lambda study: study.effects), runs * len(self._scorer.batches), runs * _tokens(self._scorer)
        )

    def path(self) -> Counts:
        """The integrated gradient with the fewest nodes, beside the two runs of `effect`."""
        runs = 2 + FIRST_NODES
        # What stands before the first edited layer keeps nothing for the backward pass.
        memory = self._most(
            lambda study: node(study, 0.5, [by_layer(study).shares]), self.model.n_layers - self.layers[0]
        )
        return Counts(
            memory,
            runs * len(self._scorer.batches),
            runs * _tokens(self._scorer),
            FIRST_NODES * len(self._scorer.batches),
        )

    @property
    def path_at_worst(self) -> int:
        """How often as many passes the path integral makes, where it is hard."""
        return (2 + sum(2**power for power in range(int(math.log2(FIRST_NODES)), int(math.log2(MAX_NODES)) + 1))) // (
            2 + FIRST_NODES
        )

    def direct(self) -> Counts:
        """Heads' direct contributions."""
        prompts = list(padded(self._encoded.prompts, self.batch_size))
        memory = self._most(lambda study: direct_contributions(study, math.inf))
        return Counts(memory, 2 * len(prompts), 2 * sum(batch.tokens.numel() for batch in prompts))

    def gradient(self) -> Counts:
        """The first-order estimate of all heads, and exact values of a sample of them."""
        n, runs = len(self._scorer.batches), 2 + 2
        copies = self._patched(SAMPLE)
        return Counts(
            self._most(lambda study: patched(study, {"gradient": ()}, all_heads(study.lens))),
            runs * n + copies.forward,
            runs * _tokens(self._scorer) + copies.tokens,
            n,
        )

    def sufficiency(self) -> Counts:
        """Exact values of all heads."""
        copies = self._patched(self.model.n_layers * self.model.lens.n_heads)
        at_once = max(1, self.batch_size // len(self._scorer.batches[0].tokens))
        return Counts(
            self._most(lambda study: patched(study, {"sufficiency": ()}, all_heads(study.lens)[:at_once])),
            2 * len(self._scorer.batches) + copies.forward,
            2 * _tokens(self._scorer) + copies.tokens,
        )

    def generate(self, new_tokens: int) -> Counts:
        """Continuations of the contrasts' prompts under the edit."""
        prompts = list(padded(self._encoded.prompts, self.batch_size, left=True))
        batch = prompts[0]

        def run(lens: Lens) -> None:
            with self._edit(lens).applied(lens.model), torch.no_grad():
                past = Past(lens, len(batch.rows)).predict(batch.tokens, batch.mask)[1]
                # Some tokens at a time, since only the last step counts.
                for width in (*_shared_out(new_tokens - 2, 3), 1):
                    found, past = past.predict(torch.zeros(len(batch.rows), width, dtype=torch.int64))
                    found.last()

        steps = new_tokens - 1
        return Counts(
            self.model.most(run),
            len(prompts) * new_tokens,
            sum(one.tokens.numel() + steps * len(one.rows) for one in prompts),
        )

    def evaluate(self, task: Task) -> Counts:
        """A benchmark under the edit: memory of its longest items, passes of its first ones, as many times over."""
        asked = {"batch_size": self.batch_size, "prepend_bos": self.prepend_bos, "progress": False}

        def run(lens: Lens, items: Sequence[Item]) -> None:
            evaluate(lens.model, replace(task, items=tuple(items)), edit=self._edit(lens), **asked)

        longest = sorted(task.items, key=lambda item: -len("".join(item.texts)))[: self.batch_size]
        first = task.items[:COUNTED_ITEMS]
        forward, tokens = self.model.passes(lambda lens: run(lens, first))
        times = len(task.items) / len(first)
        return Counts(self.model.most(lambda lens: run(lens, longest)), round(forward * times), round(tokens * times))

    @cached_property
    def _encoded(self) -> EncodedContrasts:
        return EncodedContrasts.of(self.model.lens, self.contrasts, self.prepend_bos)

    @cached_property
    def _scorer(self) -> Scorer:
        return self._encoded.scorer(self.model.lens, self.batch_size)

    def _patched(self, heads: int) -> Counts:
        """Runs in which heads are exchanged, as many copies of a batch at a time as it has room for."""
        forward = tokens = 0
        for batch in self._scorer.batches:
            at_once = max(1, self.batch_size // len(batch.tokens))
            forward += math.ceil(heads / at_once)
            tokens += heads * batch.tokens.numel()
        return Counts(0, forward, tokens)

    def _most(self, run: Callable[[Study], Any], layers: int | None = None) -> int:
        """The most that an analysis takes, run on the contrasts of the longest batch."""
        longest = sorted(set(self._scorer.batches[0].items.tolist()))
        some = Contrasts([self.contrasts[item] for item in longest])

        @outside_inference_mode
        def measured(lens: Lens) -> None:
            study = Study.of(
                lens.model, self._edit(lens), some, batch_size=self.batch_size, prepend_bos=self.prepend_bos
            )
            run(study)

        return self.model.most(measured, layers)

    def _edit(self, lens: Lens) -> SpectralEdit:
        """Any edit of all layers, of the rank that is planned for."""
        units, d = Site.of(self.site).shape(lens)
        rank = min(self.rank, d)
        factor = torch.eye(d, rank, dtype=torch.float64).expand(units, d, rank)
        ranks, values = torch.full((units,), rank), torch.ones(units, rank, dtype=torch.float64)
        one = Subspaces(factor, factor, ranks, ranks, values, values, values.sum(-1), values.sum(-1))
        every = range(lens.n_layers)
        return SpectralEdit(
            site=self.site,
            subspaces=dict.fromkeys(every, one),
            feature=feature_map("identity"),
            options={"centre": False, "spectrum_power": 2, "rank": [rank, rank]},
            n=len(self.demonstrations),
            signatures=dict.fromkeys(every, 1.0),
            provenance={},
        )


def _rows_of(planned: Passes) -> Sequence[Rows]:
    return [*([] if planned.stems is None else [planned.stems]), *planned.branches]


def _width(rows: Rows) -> int:
    """Columns of a pass."""
    return max(stop - start for start, stop in zip(rows.start, rows.stop, strict=True))


def _cells(planned: Passes) -> int:
    """Tokens that stand in memory in the largest pass, those of the cache counted."""
    stems = 0 if planned.stems is None else len(planned.stems.of) * _width(planned.stems)
    return stems + max(len(rows.of) * max(rows.stop) for rows in planned.branches)


def _tokens(scorer: Scorer) -> int:
    return sum(batch.tokens.numel() for batch in scorer.batches)


def _shared_out(number: int, parts: int) -> list[int]:
    """A number as a sum of so many parts or fewer, of equal size but the last."""
    size = max(1, math.ceil(number / parts))
    return [min(size, number - start) for start in range(0, number, size)]
