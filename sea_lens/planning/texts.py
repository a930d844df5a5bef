"""Texts to plan for: in tokens of the model's own tokenizer, or counted by their characters where there is none."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..texts.demonstrations import Contrasts, Demonstrations
from ..texts.items import Contrast, Demonstration

# Characters of English that are a token, on average, to the tokenizers of today.
CHARACTERS = 4
# What is planned for where no file is given: tokens of a prompt, and of what stands behind it.
N_DEMONSTRATIONS, N_CONTRASTS, PROMPT, ANSWER = 1000, 200, 128, 32


@dataclass(frozen=True)
class TokenCounter:
    """Stands in for a tokenizer: every few characters are a token, alike where they are alike.

    Attributes:
        vocabulary: how many tokens there are.
        bos_token_id: the token in front of every text, None for none.
    """

    vocabulary: int
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    chat_template: str | None = None
    init_kwargs: dict[str, Any] = field(default_factory=dict)

    def __call__(self, text: str, **options: Any) -> "TokenCounter.Encoded":
        """The tokens of a text."""
        pieces = [text[start : start + CHARACTERS] for start in range(0, len(text), CHARACTERS)]
        return self.Encoded([zlib.crc32(piece.encode("utf-8", "replace")) % self.vocabulary for piece in pieces])

    def decode(self, tokens: Sequence[int], **options: Any) -> str:
        """A text of as many characters as the tokens stand for."""
        return " " * (CHARACTERS * len(tokens))

    @dataclass(frozen=True)
    class Encoded:
        """What a tokenizer returns."""

        input_ids: list[int]


def assumed_demonstrations(n_ctx: int, n: int = N_DEMONSTRATIONS) -> Demonstrations:
    """Demonstrations of an assumed length that fit a context, for a `TokenCounter`."""
    return as_demonstrations(assumed_contrasts(n_ctx, n))


def assumed_contrasts(n_ctx: int, n: int = N_CONTRASTS) -> Contrasts:
    """Contrasts of an assumed length that fit a context, for a `TokenCounter`."""
    # One token is left for BOS.
    prompt, answer = min(PROMPT, n_ctx * 3 // 4), min(ANSWER, max(1, n_ctx // 4 - 1))
    return Contrasts(
        Contrast(_words(f"{i:x}", prompt), _words("good", answer), _words("evil", answer)) for i in range(n)
    )


def as_demonstrations(contrasts: Contrasts) -> Demonstrations:
    """Demonstrations of the same texts."""
    return Demonstrations(
        Demonstration(one.prompt, one.prompt + one.target, one.prompt + one.foil) for one in contrasts
    )


def as_contrasts(demonstrations: Demonstrations) -> Contrasts:
    """Contrasts of the same texts, of the first of many."""
    return Contrasts(
        Contrast(one.neutral, *(_behind(one.neutral, text) for text in (one.positive, one.negative)))
        for one in demonstrations[:N_CONTRASTS]
    )


def _behind(prompt: str, text: str) -> str:
    """What a text adds to a prompt; all of it where it does not begin with that."""
    return text[len(prompt) :] if text.startswith(prompt) and text != prompt else f" {text}"


def _words(first: str, tokens: int) -> str:
    """A text of so many tokens with this beginning."""
    return first.rjust(CHARACTERS, "x")[-CHARACTERS:] + "word" * (tokens - 1)
