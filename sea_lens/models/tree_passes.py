"""Running the passes over the texts of demonstrations, and keeping what is read of their activations."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from .._support.memory import is_out_of_memory, release
from ..errors import DemonstrationError, SeaLensWarning
from .cache_probe import cached_reading, distrust
from .cached_pass import holds, read_with_cache, selected
from .demonstration_texts import DemonstrationTexts
from .lens import Lens
from .text_trees import Rows, passes
from .tokens import pad


@dataclass(frozen=True)
class PaddedRows:
    """The rows of one pass as tensors.

    Attributes:
        tokens: what the pass reads: stems padded on the left, all else on the right.
        mask: 1 on tokens and 0 on padding, the stems of the rows counted.
        parents: the stem that each row goes on from; None where none does.
        rows, positions: of every token that is read.
        counts: how many of these belong to each text that is read.
        texts: which texts these are.
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch past_and_pos"]
    parents: Int[Tensor, " batch"] | None
    rows: Int[Tensor, " read"]
    positions: Int[Tensor, " read"]
    counts: Int[Tensor, " texts"]
    texts: Int[Tensor, " texts"]

    def to(self, device: torch.device) -> "PaddedRows":
        """The same on a device, which is not waited for."""
        return PaddedRows(
            *(None if one is None else one.to(device, non_blocking=True) for one in vars(self).values())  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Prepared:
    """What is run for some demonstrations.

    Attributes:
        numbers: their indices.
        stems: the pass over their stems, None where all is run whole.
        others: the passes behind it.
        renamed: whether a bridge is handed its cache under the old name as well.
    """

    numbers: Sequence[int]
    stems: PaddedRows | None
    others: tuple[PaddedRows, ...]
    renamed: bool


class TreeReader:
    """Reads activations of demonstrations at some hook points.

    Args:
        lens: the model.
        texts: the demonstrations.
        names: the hook points.
        layers: how many of the model's layers a pass has to run.
        mean: whether activations are averaged over several tokens.
        tokens: that a pass has at most, padding counted.
    """

    def __init__(
        self, lens: Lens, texts: DemonstrationTexts, names: Sequence[str], layers: int, *, mean: bool, tokens: int
    ) -> None:
        self._lens, self._texts, self._names, self._layers = lens, texts, tuple(names), layers
        self._mean, self._tokens = mean, tokens
        # Demonstrations that fit memory together, once it ran out.
        self._most: int | None = None

    def prepare(self, numbers: Sequence[int], *, one_by_one: bool = False) -> Prepared:
        """The passes over these demonstrations; with `one_by_one`, each row is a pass by itself.

        Stems are run once where that is exact: where a cache is (`models.cache_probe`), and where nothing stands in the
        model that may depend on how a text is read.
        """
        lens, trees = self._lens, [self._texts.trees[number] for number in numbers]
        at_all, here = cached_reading(lens), cached_reading(lens, max(tree.longest for tree in trees))
        free = not one_by_one and not lens.observer.standing_here() and not lens.has_foreign_hooks()
        padded = (at_all.padded and here.padded) or len({tree.stem for tree in trees}) == 1
        planned = passes(
            trees,
            0 if one_by_one or here.apart else self._tokens,
            share=free and padded and "whole" not in (at_all.way, here.way),
        )
        sequences = [self._texts.sequences(number) for number in numbers]
        stems = None if planned.stems is None else _padded(planned.stems, sequences, left=True)
        others = [_padded(rows, sequences, stems=stems) for rows in planned.branches]
        return Prepared(
            numbers,
            None if stems is None else stems.to(lens.device),
            tuple(rows.to(lens.device) for rows in others),
            renamed="renamed" in (at_all.way, here.way),
        )

    def read(self, prepared: Prepared) -> dict[str, Tensor]:
        """What each text has at each hook point: (3 · demonstrations, …), three texts for each.

        Raises:
            DemonstrationError: memory does not suffice for one text; names it.

        Warns:
            SeaLensWarning: memory does not suffice, and the demonstrations are read in parts; said once.
        """
        numbers = prepared.numbers
        if self._most is not None and len(numbers) > self._most:
            return self._in_parts(numbers, self._most)
        try:
            return self._run(prepared)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).strip().split("\n")[0]
        # Behind the handler, since the error holds on to what was computed.
        release(self._lens.device)
        if len(numbers) > 1:
            return self._in_parts(numbers, (len(numbers) + 1) // 2)
        try:
            return self._run(self.prepare(numbers, one_by_one=True))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        raise DemonstrationError(
            f"{self._texts.names[numbers[0]]}: memory does not suffice for one of its texts, the longest of "
            f"{self._texts.trees[numbers[0]].longest} tokens ({reason})"
        )

    def _in_parts(self, numbers: Sequence[int], most: int) -> dict[str, Tensor]:
        if self._most is None:
            warnings.warn(
                f"memory does not suffice for {len(numbers)} demonstrations at a time: they are read in smaller "
                f"batches (batch_size or tokens_per_batch would make all of them smaller)",
                SeaLensWarning,
                stacklevel=2,
            )
        self._most = most
        parts = [self.read(self.prepare(numbers[i : i + most])) for i in range(0, len(numbers), most)]
        return {name: torch.cat([part[name] for part in parts]) for name in self._names}

    def _run(self, prepared: Prepared) -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}
        with torch.no_grad():
            state = None
            if prepared.stems is not None:
                state = self._read(prepared.stems, prepared, kept, None)
                if state is None or not holds(state, prepared.stems.tokens.shape[1], self._layers):
                    # From now on the model is read whole.
                    distrust(self._lens)
                    return self._run(self.prepare(prepared.numbers))
            for rows in prepared.others:
                self._read(rows, prepared, kept, state)
        return {name: self._averaged(sums, prepared.numbers) for name, sums in kept.items()} if self._mean else kept

    def _averaged(self, sums: Tensor, numbers: Sequence[int]) -> Tensor:
        spans = [span for number in numbers for span in self._texts.trees[number].spans]
        lengths = torch.tensor([span.stop - span.start for span in spans], device=sums.device)
        return sums / lengths.reshape(-1, *[1] * (sums.ndim - 1))

    def _read(self, rows: PaddedRows, prepared: Prepared, kept: dict[str, Tensor], state: object) -> object:
        """Read one pass into what is kept; gives the cache of a pass over stems."""

        def keep(x: Tensor, name: str) -> Tensor:
            values = x[rows.rows.to(x.device), rows.positions.to(x.device)]
            if self._mean:
                values = _summed(values.to(self._lens.double_device, torch.float64), rows.counts)
            if name not in kept:
                kept[name] = values.new_zeros(3 * len(prepared.numbers), *values.shape[1:])
            # A text that is read in two passes is there once in each.
            kept[name].index_add_(0, rows.texts.to(values.device), values)
            return kept[name]

        if prepared.stems is None:
            self._lens.read(rows.tokens, rows.mask, self._names, reduce=keep)
            return None
        if rows.parents is not None:
            state = selected(state, rows.parents)
        return read_with_cache(self._lens, rows.tokens, rows.mask, self._names, keep, state, renamed=prepared.renamed)[
            1
        ]


def _summed(values: Tensor, counts: Int[Tensor, " texts"]) -> Tensor:
    """Sums of so many neighbours each."""
    if not len(values):
        return values
    sums = torch.segment_reduce(values.flatten(1), "sum", lengths=counts.to(values.device), unsafe=True)
    return sums.unflatten(1, values.shape[1:])


def _padded(
    planned: Rows, texts: Sequence[Sequence[list[int]]], *, left: bool = False, stems: PaddedRows | None = None
) -> PaddedRows:
    """The tensors of a pass.

    Args:
        planned: its rows.
        texts: the sequences of each tree.
        left: pad on the left.
        stems: the pass that the rows go on from.
    """
    sequences = [
        texts[place][sequence][start:stop]
        for (place, sequence), start, stop in zip(planned.of, planned.start, planned.stop, strict=True)
    ]
    tokens, mask = pad(sequences, left=left)
    parents = None
    if stems is not None:
        parents = torch.tensor([place for place, _ in planned.of])
        mask = torch.cat([stems.mask[parents], mask], 1)
    shifts = [tokens.shape[1] - len(sequence) if left else 0 for sequence in sequences]
    read = [(one.row, place + shifts[one.row]) for one in planned.reads for place in range(one.start, one.stop)]
    kept = [(one.stop - one.start, one.text) for one in planned.reads]
    rows, positions = torch.tensor(read, dtype=torch.int64).reshape(-1, 2).unbind(1)
    counts, of_texts = torch.tensor(kept, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return PaddedRows(tokens, mask, parents, rows, positions, counts, of_texts)
