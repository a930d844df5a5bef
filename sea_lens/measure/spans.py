"""What is scored: spans of tokens, and the plan that reads each different input among them once.

Both ways of scoring begin here (docs/method.md 6.1): `scorer`, differentiable and with rows of one item each, and
`shared_prompts`, which reads what prompts have in common once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ActivationError, DemonstrationError
from ..models.lens import Lens
from ..models.tokens import bos_token, tokenise, tokenise_completion


class Span(NamedTuple):
    """Tokens of which those from `start` on are scored, each given all that stand before it.

    The first `prompt` of them are the prompt: all before `start`, but in a later part of a completion that was cut.
    """

    tokens: tuple[int, ...]
    start: int
    prompt: int | None = None

    @property
    def prompt_length(self) -> int:
        """How many of the tokens are the prompt."""
        return self.start if self.prompt is None else self.prompt


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
    """The spans that score the tokens from `start` on, cut to fit the context (docs/method.md 6.6).

    The last token is only predicted, so that a sequence may be one longer than the context. A sequence that fits is
    one span. Of a longer one, each span scores at most half a context and has as many tokens before that as fit, BOS
    kept, so that every token is given about half a context or more. The left end of the prompt goes first, as in
    EleutherAI's harness.
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
            spans.append(Span(tuple(tokens[:last]), first, start))
            continue
        prompt = len(bos) + max(start - begin, 0)
        spans.append(Span((*bos, *tokens[begin:last]), len(bos) + first - begin, prompt))
        cut = cut or (begin - len(bos) if first == start else 0)
    return Fitted(tuple(spans), cut)


def completion_spans(
    lens: Lens,
    prompt: str,
    completions: Iterable[str],
    *,
    prepend_bos: bool = True,
    together: bool = False,
    what: str = "item",
) -> list[Fitted]:
    """Each completion after the prompt, in tokens that fit the context (docs/method.md 6.1).

    A completion's tokens are those of prompt + completion after the longest token prefix shared with the prompt alone.

    Args:
        lens: the model.
        prompt, completions: the texts.
        prepend_bos: one BOS in front, where the tokenizer has one.
        together: score all completions from the first token on that any of them changes. Where the prompt ends in white
            space that some of them take into their first token, all of them then answer for it.
        what: what errors call the item.

    Raises:
        DemonstrationError: a completion adds no token, or there is no token before it; names the item.
    """
    alone = tokenise(lens, prompt, prepend_bos=prepend_bos, what=f"prompt of {what}")
    found = [
        tokenise_completion(lens, prompt, text, alone, prepend_bos=prepend_bos, what=f"{what}, answer {i},")
        for i, text in enumerate(completions)
    ]
    first = min((start for _, start in found), default=0)
    return [fit_context(lens, whole, first if together else start) for whole, start in found]


def text_spans(lens: Lens, text: str, *, prepend_bos: bool = True, what: str = "text") -> Fitted:
    """A whole text, scored given BOS, given EOS where the tokenizer has no BOS, else without its first token.

    The rule is that of docs/method.md 6.5.

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


@dataclass(frozen=True)
class Plan:
    """The different inputs among spans, and the spans that each of them answers for.

    Attributes:
        inputs: tokens to read; the last token of a span is only predicted and never read.
        prompts: how many tokens of each input are its prompt.
        wanted: for each input, the spans of which it is all but the last token, as (place in what was given, span).
        n: number of spans.
    """

    inputs: tuple[tuple[int, ...], ...]
    prompts: tuple[int, ...]
    wanted: tuple[tuple[tuple[int, Span], ...], ...]
    n: int

    @classmethod
    def of(cls, spans: Sequence[Span], apart: Sequence[int] | None = None) -> "Plan":
        """The plan for some spans.

        Args:
            spans: what to score.
            apart: the item of each span, where those of different items must not share an input.
        """
        found: dict[tuple[int, int, tuple[int, ...]], list[tuple[int, Span]]] = {}
        for index, span in enumerate(spans):
            item = 0 if apart is None else apart[index]
            found.setdefault((item, span.prompt_length, span.tokens[:-1]), []).append((index, span))
        inputs, prompts = tuple(tokens for *_, tokens in found), tuple(prompt for _, prompt, _ in found)
        return cls(inputs, prompts, tuple(map(tuple, found.values())), len(spans))

    def entries(self, places: Sequence[int], read: int = 0) -> Int[Tensor, "4 n"]:
        """Row, position, token and span of every log-probability that counts, where these inputs are the rows.

        Args:
            places: the inputs.
            read: how many tokens of each were read before, so that the rows begin behind them.
        """
        found = [
            (row, position - read, span.tokens[position + 1], index)
            for row, place in enumerate(places)
            for index, span in self.wanted[place]
            for position in range(span.start - 1, len(span.tokens) - 1)
        ]
        return rearrange(torch.tensor(found), "n field -> field n")


def check_log_probs(sums: Float[Tensor, " n"]) -> None:
    """Refuse log-probabilities that are not finite.

    Raises:
        ActivationError: one is NaN or infinite; names the first.
    """
    finite = torch.isfinite(sums)
    if not finite.all():
        worst = int((~finite).nonzero()[0])
        raise ActivationError(f"the model gives completion {worst} a log-probability of {sums[worst]}")
