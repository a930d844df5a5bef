"""Log-probabilities of many completions; what these share is computed once (docs/method.md 6.9).

Benchmarks ask for several answers to each prompt, and put the same examples in front of all prompts. The tokens that
several items begin with are read once, then every prompt once, then the answers (`models.cache`). Prompts of equal
length are read together, so that no cached position is padding, and every log-probability is that of a forward pass
over its row alone.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._support.arguments import as_integer
from ..edits.in_model import asks_for_whole_rows
from ..models.cache import Past
from ..models.check import ensure_usable
from ..models.lens import Lens
from ..models.tokens import batches, common_length
from .spans import Plan, Span, check_log_probs

# Fewer tokens in front of everything are not worth a pass of their own.
_SHORTEST_COMMON = 8


def log_probs(
    lens: Lens, spans: Sequence[Span], items: Sequence[int], *, batch_size: int = 16
) -> Float[Tensor, " spans"]:
    """Summed log-probability of each span's scored tokens, under the model as it is now.

    Args:
        lens: the model, with whatever edit is in it. Where it has hooks that sea_lens did not install, which may depend
            on positions, or an edit whose positions are a function of the tokens, every row is read whole.
        spans: what to score.
        items: the item of each span; spans of one item have a prompt in common.
        batch_size: rows at a time.

    Returns:
        Nats, float64 on the CPU, without gradient.

    Raises:
        ActivationError: a log-probability is NaN or infinite.
        UnsupportedModelError, InputError: the model is not what it should be, or drops out units at random.
    """
    return scores(lens, spans, items, batch_size=batch_size)[0]


def scores(
    lens: Lens, spans: Sequence[Span], items: Sequence[int], *, batch_size: int = 16
) -> tuple[Float[Tensor, " spans"], Bool[Tensor, " spans"]]:
    """`log_probs`, and whether each span's scored tokens are the most probable ones; arguments and errors as there."""
    ensure_usable(lens)
    batch_size = as_integer(batch_size, "batch_size", least=1)
    if not spans:
        return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool)
    rows = _Rows(lens, Plan.of(spans), batch_size)
    if lens.has_foreign_hooks() or asks_for_whole_rows(lens):
        rows.read_all(Past(lens, 1), 0, range(len(rows.plan.inputs)), alone=True)
        return rows.totals()
    for places, shared in _families(rows.plan, items):
        past = Past(lens, 1)
        if shared:
            past = past.extended(torch.tensor([rows.plan.inputs[places[0]][:shared]]), prompts=[shared + 1])
        alone, by_length = _grouped_by_prompt(rows.plan, places, items, shared)
        rows.read_all(past, shared, alone)
        for length, groups in sorted(by_length.items(), reverse=True):
            for begin in range(0, len(groups), batch_size):
                some = groups[begin : begin + batch_size]
                prompts = torch.tensor([rows.plan.inputs[group[0]][shared:length] for group in some])
                # What is read together stands before the last token of every prompt.
                read = past.select([0] * len(some)).extended(prompts, prompts=[length + 1] * len(some))
                which = {row: place for place, group in enumerate(some) for row in group}
                rows.read_all(read, length, list(which), which.__getitem__)
    return rows.totals()


def _families(plan: Plan, items: Sequence[int]) -> list[tuple[list[int], int]]:
    """Inputs of several items that begin alike, with how many tokens they share; last all other inputs, with 0.

    A prompt that was cut to fit the context begins unlike all others, and must not keep them from sharing.
    """
    begin_alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, tokens in enumerate(plan.inputs):
        begin_alike[tokens[:_SHORTEST_COMMON]].append(place)
    families: list[tuple[list[int], int]] = []
    others: list[int] = []
    for places in begin_alike.values():
        wanted = [entry for place in places for entry in plan.wanted[place]]
        shared = min(common_length([plan.inputs[place] for place in places]), *(_unscored(span) for _, span in wanted))
        if shared >= _SHORTEST_COMMON and len({items[index] for index, _ in wanted}) > 1:
            families.append((places, shared))
        else:
            others += places
    return [*families, (others, 0)] if others else families


def _grouped_by_prompt(
    plan: Plan, places: Sequence[int], items: Sequence[int], shared: int
) -> tuple[list[int], dict[int, list[list[int]]]]:
    """Inputs that have no prompt in common with another, and groups that have, by the length of what they share."""
    of_item: dict[int, list[int]] = defaultdict(list)
    for place in places:
        of_item[items[plan.wanted[place][0][0]]].append(place)
    alone: list[int] = []
    by_length: dict[int, list[list[int]]] = defaultdict(list)
    for group in of_item.values():
        unscored = [_unscored(span) for place in group for _, span in plan.wanted[place]]
        length = min(common_length([plan.inputs[place] for place in group]), *unscored)
        if len(group) == 1 or length <= shared:
            alone += group
        else:
            by_length[length].append(group)
    return alone, by_length


def _unscored(span: Span) -> int:
    """Tokens of a span that stand before the last one of its prompt, and before any that predicts a scored one."""
    return min(span.start, span.prompt_length) - 1


def _first_alike(tokens: Int[Tensor, "batch pos"], begun: Sequence[Hashable]) -> Int[Tensor, "2 batch pos"]:
    """For each position, the first row and position behind the same tokens, in rows that have begun alike."""
    known: dict[Hashable, int] = {}
    first: list[tuple[int, int]] = []
    found = []
    for row, (beginning, of_row) in enumerate(zip(begun, tokens.tolist(), strict=True)):
        at: Hashable = beginning
        for position, token in enumerate(of_row):
            at = known.setdefault((at, token), len(first))
            if at == len(first):
                first.append((row, position))
            found.append(first[at])
    return rearrange(torch.tensor(found), "(batch pos) place -> place batch pos", batch=len(tokens))


class _Rows:
    """Reads the inputs of a plan, and adds up the log-probabilities that it asks for."""

    def __init__(self, lens: Lens, plan: Plan, batch_size: int) -> None:
        self.lens, self.plan, self.batch_size = lens, plan, batch_size
        self.sums = torch.zeros(plan.n, dtype=torch.float64)
        self.missed = torch.zeros(plan.n, dtype=torch.int64)

    def read_all(
        self,
        past: Past,
        length: int,
        places: Iterable[int],
        row_of: Callable[[int], int] = lambda place: 0,
        *,
        alone: bool = False,
    ) -> None:
        """Read the rest of these inputs, of which `length` tokens have been read, after their rows of the past.

        Where inputs begin alike, what is predicted there is asked for once, unless each must stand alone.
        """
        order = list(places)
        for batch in batches([self.plan.inputs[place][length:] for place in order], self.batch_size):
            chosen = [order[row] for row in batch.rows]
            prompts = [self.plan.prompts[place] for place in chosen]
            found, read = past.select([row_of(place) for place in chosen]).predict(batch.tokens, batch.mask, prompts)
            row, position, token, index = self.plan.entries(chosen, length)
            # Without a cache, a row may be read otherwise than a longer one that begins alike (LongRoPE).
            if not alone and read.state is not None:
                begun = [(row_of(place), self.plan.prompts[place]) for place in chosen]
                row, position = _first_alike(batch.tokens, begun)[:, row, position]
            log_probs, best = found.scores(row, position, token)
            self.sums.index_add_(0, index, log_probs.double().cpu())
            self.missed.index_add_(0, index, (~best).long().cpu())

    def totals(self) -> tuple[Float[Tensor, " spans"], Bool[Tensor, " spans"]]:
        """Sums of log-probabilities, and whether no token was less than the most probable one."""
        check_log_probs(self.sums)
        return self.sums, self.missed == 0
