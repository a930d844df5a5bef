"""Log-probabilities of many completions, what they share computed once.

Benchmarks ask for several answers to each prompt, and put the same examples in front of all prompts. Tokens that all
rows begin with are read once, then every prompt once, then the answers (`models.cache`). Prompts of equal length are
read together, so that nothing that is kept holds padding and every number is that of a forward pass of its own.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer
from ..errors import ActivationError, DemonstrationError
from ..models.cache import Past
from ..models.lens import Lens
from ..models.tokens import batches, bos_token, common_length, tokenise, tokenise_completion

# Fewer tokens in front of everything are not worth a pass of their own.
_SHORTEST_COMMON = 8


class Span(NamedTuple):
    """Tokens of which those from `start` on are scored, each given all that stand before it."""

    tokens: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Fitted:
    """A completion as it fits the context.

    Attributes:
        spans: one, or several where the completion alone fills more than half of the context.
        cut: tokens of the prompt that the first scored token could not be given.
    """

    spans: tuple[Span, ...]
    cut: int


def fit_context(lens: Lens, tokens: Sequence[int], start: int) -> Fitted:
    """Tokens from `start` on, scored given as much of what stands before as the context holds, BOS kept.

    The last token is only predicted, so that a sequence may be one longer than the context. One that fits is scored
    whole. Of a longer one at most half a context is scored at a time, so that every
    token is given at least about half a context; the left end of the prompt goes first, as in EleutherAI's harness.
    """
    room = lens.n_ctx + 1
    if len(tokens) <= room:
        return Fitted((Span(tuple(tokens), start),), 0)
    bos = [tokens[0]] if tokens[0] == bos_token(lens) else []
    half, spans, cut = lens.n_ctx // 2, [], 0
    for first in range(start, len(tokens), half):
        last = min(first + half, len(tokens))
        begin = max(last - (room - len(bos)), 0)
        if begin <= len(bos):
            spans.append(Span(tuple(tokens[:last]), first))
            continue
        spans.append(Span((*bos, *tokens[begin:last]), len(bos) + first - begin))
        cut = cut or (begin - len(bos) if first == start else 0)
    return Fitted(tuple(spans), cut)


def completion_spans(
    lens: Lens, prompt: str, completions: Iterable[str], *, prepend_bos: bool = True, what: str = "item"
) -> list[Fitted]:
    """Each completion after the prompt, in tokens that fit the context.

    Its tokens are those of prompt + completion after the longest token prefix shared with the prompt alone (API.md).

    Raises:
        DemonstrationError: a completion adds no token, or there is no token before it; names the item.
    """
    return [
        fit_context(
            lens, *tokenise_completion(lens, prompt, text, prepend_bos=prepend_bos, what=f"{what}, answer {i},")
        )
        for i, text in enumerate(completions)
    ]


def text_spans(lens: Lens, text: str, *, prepend_bos: bool = True, what: str = "text") -> Fitted:
    """A whole text, given BOS; given EOS where the tokenizer has no BOS; else all but its first token.

    Raises:
        DemonstrationError: nothing is left to score; names the text.
    """
    tokens = tokenise(lens, text, prepend_bos=prepend_bos, what=what)
    end = lens.tokenizer.eos_token_id
    if prepend_bos and bos_token(lens) is None and end is not None:
        tokens = [end, *tokens]
    if len(tokens) < 2:
        raise DemonstrationError(f"{what} has no token that could be predicted: {text!r}")
    return fit_context(lens, tokens, 1)


def log_probs(
    lens: Lens, spans: Sequence[Span], items: Sequence[int], *, batch_size: int = 16
) -> Float[Tensor, " spans"]:
    """Summed log-probability of each span's scored tokens, under the model as it is now.

    Args:
        lens: the model, with whatever edit is in it. Where it has hooks that sea_lens did not install, which may depend
            on positions, every row is read whole.
        spans: what to score.
        items: which spans have a prompt in common: those of one item.
        batch_size: rows at a time.

    Returns:
        Nats, float64 on the CPU, without gradient.

    Raises:
        ActivationError: one is NaN or infinite.
    """
    batch_size = as_integer(batch_size, "batch_size", least=1)
    if not spans:
        return torch.zeros(0, dtype=torch.float64)
    rows = _Rows(lens, spans, batch_size)
    if lens.has_foreign_hooks():
        rows.read_all(Past(lens, 1), 0, range(len(rows.inputs)))
        return rows.totals()
    for places, shared in _families(rows, items):
        past = Past(lens, 1)
        if shared:
            _, past = past.read(torch.tensor([rows.inputs[places[0]][:shared]]))
        alone, by_length = _grouped_by_prompt(rows, places, items, shared)
        rows.read_all(past, shared, alone)
        for length, groups in sorted(by_length.items(), reverse=True):
            for begin in range(0, len(groups), batch_size):
                some = groups[begin : begin + batch_size]
                prompts = torch.tensor([rows.inputs[group[0]][shared:length] for group in some])
                _, read = past.select([0] * len(some)).read(prompts)
                which = {row: place for place, group in enumerate(some) for row in group}
                rows.read_all(read, length, list(which), which.__getitem__)
    return rows.totals()


def _families(rows: "_Rows", items: Sequence[int]) -> list[tuple[list[int], int]]:
    """Inputs that begin alike with those of other items, with what they share, and last all the others.

    A prompt that was cut to fit the context begins unlike all others, and must not keep them from sharing.
    """
    begin_alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, tokens in enumerate(rows.inputs):
        begin_alike[tokens[:_SHORTEST_COMMON]].append(place)
    families: list[tuple[list[int], int]] = []
    others: list[int] = []
    for places in begin_alike.values():
        wanted = [entry for place in places for entry in rows.wanted[place]]
        shared = min(common_length([rows.inputs[place] for place in places]), *(span.start - 1 for _, span in wanted))
        if shared >= _SHORTEST_COMMON and len({items[index] for index, _ in wanted}) > 1:
            families.append((places, shared))
        else:
            others += places
    return [*families, (others, 0)] if others else families


def _grouped_by_prompt(
    rows: "_Rows", places: Sequence[int], items: Sequence[int], shared: int
) -> tuple[list[int], dict[int, list[list[int]]]]:
    """Inputs that have no prompt in common with another, and groups that have, by the length of what they share."""
    of_item: dict[int, list[int]] = defaultdict(list)
    for place in places:
        of_item[items[rows.wanted[place][0][0]]].append(place)
    alone: list[int] = []
    by_length: dict[int, list[list[int]]] = defaultdict(list)
    for group in of_item.values():
        starts = [span.start - 1 for place in group for _, span in rows.wanted[place]]
        length = min(common_length([rows.inputs[place] for place in group]), *starts)
        if len(group) == 1 or length <= shared:
            alone += group
        else:
            by_length[length].append(group)
    return alone, by_length


class _Rows:
    """The different inputs among spans, and the log-probabilities collected so far."""

    def __init__(self, lens: Lens, spans: Sequence[Span], batch_size: int) -> None:
        self.lens, self.batch_size = lens, batch_size
        # The last token is only predicted, never read.
        wanted: dict[tuple[int, ...], list[tuple[int, Span]]] = defaultdict(list)
        for index, span in enumerate(spans):
            wanted[span.tokens[:-1]].append((index, span))
        self.inputs, self.wanted = list(wanted), list(wanted.values())
        self.sums = torch.zeros(len(spans), dtype=torch.float64)

    def read_all(
        self, past: Past, length: int, places: Iterable[int], row_of: Callable[[int], int] = lambda place: 0
    ) -> None:
        """Read the rest of these inputs, of which `length` tokens have been read, after their rows of the past."""
        order = list(places)
        for batch in batches([self.inputs[place][length:] for place in order], self.batch_size):
            chosen = [order[row] for row in batch.rows]
            logits, _ = past.select([row_of(place) for place in chosen]).read(batch.tokens, batch.mask)
            self._collect(logits, chosen, length)

    def _collect(self, logits: Float[Tensor, "batch pos d_vocab"], places: list[int], length: int) -> None:
        entries = [
            (row, position - length, span.tokens[position + 1], index)
            for row, place in enumerate(places)
            for index, span in self.wanted[place]
            for position in range(span.start - 1, len(span.tokens) - 1)
        ]
        row, position, token, index = torch.tensor(entries, device=logits.device).unbind(1)
        scores = logits[row, position].float().log_softmax(-1).gather(1, token[:, None])[:, 0]
        self.sums.index_add_(0, index.cpu(), scores.double().cpu())

    def totals(self) -> Float[Tensor, " spans"]:
        if not torch.isfinite(self.sums).all():
            worst = int((~torch.isfinite(self.sums)).nonzero()[0])
            raise ActivationError(f"the model gives completion {worst} a log-probability of {self.sums[worst]}")
        return self.sums
