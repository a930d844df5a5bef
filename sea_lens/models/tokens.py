"""Texts to tokens: one BOS in front, never two; padded batches; completions (docs/method.md 6.1)."""

import copy
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from .._support.text_rows import has_half_character
from ..errors import DemonstrationError
from .language_model import LanguageModel
from .lens import Lens


def bos_token(lens: LanguageModel) -> int | None:
    """The tokenizer's own BOS token, None where it has none.

    TransformerLens gives a tokenizer without BOS its EOS as one, and a model that `load_model` did not load keeps that
    tokenizer. A configuration that says outright that there is no BOS is therefore believed.
    """
    tokenizer = lens.tokenizer
    if tokenizer.init_kwargs.get("bos_token", "") is None:
        return None
    return tokenizer.bos_token_id


def chat_tokenizer(lens: Lens) -> Any:
    """The model's tokenizer with the chat template that counts: one that was set on the model itself comes first.

    `load_model` keeps the tokenizer as it came beside the one that TransformerLens has made of it. A user sees the
    latter, as `model.tokenizer`, and sets a chat template there.
    """
    own, seen = lens.tokenizer, getattr(lens.model, "tokenizer", None)
    template = getattr(seen, "chat_template", None)
    if seen is own or template is None or template == getattr(own, "chat_template", None):
        return own
    tokenizer = copy.copy(own)
    tokenizer.chat_template = template
    return tokenizer


def tokenise(lens: LanguageModel, text: str, *, prepend_bos: bool = True, what: str = "text") -> list[int]:
    """Tokens of a text of any length, with one BOS in front where the tokenizer has one and `prepend_bos` holds.

    Raises:
        DemonstrationError: the text cannot be tokenised; `what` names it.
    """
    if has_half_character(text):
        raise DemonstrationError(f"{what} holds half a character (a lone surrogate)")
    tokens: list[int] = lens.tokenizer(text, add_special_tokens=False).input_ids
    if tokens and max(tokens) >= lens.d_vocab:
        beyond = next(token for token in tokens if token >= lens.d_vocab)
        raise DemonstrationError(
            f"{what} holds {lens.tokenizer.decode([beyond])!r}, token {beyond}, and the model has embeddings for "
            f"{lens.d_vocab} tokens alone"
        )
    bos = bos_token(lens)
    return [bos, *tokens] if prepend_bos and bos is not None and tokens[:1] != [bos] else tokens


def encode(lens: LanguageModel, text: str, *, prepend_bos: bool = True, what: str = "text") -> list[int]:
    """`tokenise`, for a text that must have tokens and fit the model's context.

    Raises:
        DemonstrationError: it does not; `what` names it.
    """
    tokens = tokenise(lens, text, prepend_bos=prepend_bos, what=what)
    if not tokens:
        raise DemonstrationError(f"{what} has no tokens")
    if len(tokens) > lens.n_ctx:
        raise DemonstrationError(f"{what} has {len(tokens)} tokens, the model's context holds {lens.n_ctx}")
    return tokens


def tokenise_completion(
    lens: Lens, prompt: str, completion: str, alone: Sequence[int], *, prepend_bos: bool = True, what: str
) -> tuple[list[int], int]:
    """Tokens of prompt + completion, and where the completion starts: after the longest prefix shared with the prompt.

    Args:
        lens: the model.
        prompt, completion: the two texts.
        alone: tokens of the prompt by itself, made once for all of its completions.
        prepend_bos: as in `tokenise`.
        what: what errors call the completion.

    Raises:
        DemonstrationError: the text cannot be tokenised, the completion adds no token of its own, or there is no token
            before it.
    """
    whole = tokenise(lens, prompt + completion, prepend_bos=prepend_bos, what=what)
    start = common_length([list(alone), whole])
    if start == len(whole):
        raise DemonstrationError(f"{what} adds no token to its prompt: {completion!r}")
    if start == 0:
        raise DemonstrationError(f"{what} has no token before its completion: expected a prompt, or a BOS token")
    return whole, start


def encode_completions(
    lens: Lens, prompt: str, completions: Mapping[str, str], *, prepend_bos: bool = True
) -> tuple[list[int], list[tuple[list[int], int]]]:
    """Tokens of a prompt, and of the prompt with each of its completions, with where the completion starts.

    Args:
        lens: the model.
        prompt: what the completions follow.
        completions: at least one, by what errors call it.
        prepend_bos: as in `tokenise`.

    Raises:
        DemonstrationError: a text does not fit the model's context, or as `tokenise_completion`.
    """
    alone = encode(lens, prompt, prepend_bos=prepend_bos, what=f"prompt of {next(iter(completions))}")
    found = []
    for what, text in completions.items():
        whole, start = tokenise_completion(lens, prompt, text, alone, prepend_bos=prepend_bos, what=what)
        if len(whole) > lens.n_ctx:
            raise DemonstrationError(f"{what} has {len(whole)} tokens, the model's context holds {lens.n_ctx}")
        found.append((whole, start))
    return alone, found


def encode_completion(
    lens: Lens, prompt: str, completion: str, *, prepend_bos: bool = True, what: str = "completion"
) -> tuple[list[int], int]:
    """`encode_completions` for a single one."""
    return encode_completions(lens, prompt, {what: completion}, prepend_bos=prepend_bos)[1][0]


def common_length(rows: Sequence[tuple[int, ...]] | Sequence[list[int]]) -> int:
    """Length of the longest prefix that all rows share."""
    # In lexicographic order the first and the last row differ as early as any two rows do.
    pairs = zip(min(rows), max(rows), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


class TokenRows(Sequence[list[int]]):
    """Rows of tokens, four bytes a token, so that many texts cost next to nothing beside a model."""

    def __init__(self, rows: Iterable[Sequence[int]] = ()) -> None:
        self._tokens, self._ends = array("i"), array("q", [0])
        for row in rows:
            self.append(row)

    def append(self, row: Sequence[int]) -> None:
        """Keep one more row."""
        self._tokens.extend(row)
        self._ends.append(len(self._tokens))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(len(self))[number]]
        place = range(len(self))[number]
        return self._tokens[self._ends[place] : self._ends[place + 1]].tolist()


@dataclass(frozen=True)
class Batch:
    """A batch of token sequences, padded on the right unless asked otherwise.

    Attributes:
        tokens: padded with an arbitrary token, which nothing reads.
        mask: 1 on tokens, 0 on padding.
        rows: which of the sequences given to `batches` each row is.
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    rows: list[int]


def pad(
    sequences: Sequence[Sequence[int]], *, left: bool = False
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Tokens padded on the right, or on the left, and their mask: 1 on tokens, 0 on padding."""
    longest = max(len(sequence) for sequence in sequences)
    tokens = torch.zeros(len(sequences), longest, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), None) if left else slice(len(sequence))
        tokens[row, place] = torch.tensor(sequence)
        mask[row, place] = 1
    return tokens, mask


def batches(sequences: Sequence[Sequence[int]], batch_size: int, *, left: bool = False) -> Iterator[Batch]:
    """Batches of similar length, longest first, so that little is padding and memory runs out at once or never."""
    order = sorted(range(len(sequences)), key=lambda row: -len(sequences[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        tokens, mask = pad([sequences[row] for row in rows], left=left)
        yield Batch(tokens, mask, rows)
