"""The texts of demonstrations in tokens, held compactly, and where each is read (docs/method.md 1.3 and 1.4)."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..texts.demonstrations import Demonstrations
from .decoding import continue_prompts
from .lens import Lens
from .text_trees import Span, Tree
from .tokens import TokenRows, bos_token, encode
from .vllm_engine import Engine

KINDS = ("neutral", "positive", "negative")


@dataclass(frozen=True)
class DemonstrationTexts:
    """Demonstrations as they are read.

    Attributes:
        names: what errors call the demonstrations.
        rows: tokens of their neutral, positive and negative texts, one demonstration after the other.
        trees: one for each demonstration.
    """

    names: Sequence[str]
    rows: TokenRows
    trees: Sequence[Tree]

    @classmethod
    def of(
        cls,
        lens: Lens | Engine,
        demonstrations: Demonstrations,
        *,
        position: str,
        seed: int,
        prepend_bos: bool,
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> "DemonstrationTexts":
        """Encode all texts.

        Args:
            lens: the model.
            demonstrations: whose three texts they are.
            position, seed, prepend_bos: as in `Reading`.
            max_new_tokens: append the model's own continuation of so many tokens to every neutral text; None for none.
            batch_size: prompts that are continued at a time, at most.

        Raises:
            DemonstrationError: a text that does not fit the context; names it.
        """
        rows = TokenRows(
            encode(lens, getattr(demonstration, kind), prepend_bos=prepend_bos, what=f"{name}, {kind} text,")
            for name, demonstration in zip(demonstrations.names, demonstrations, strict=True)
            for kind in KINDS
        )
        if max_new_tokens is not None:
            continued = continue_prompts(lens, rows[::3], max_new_tokens, batch_size=batch_size or 16)
            rows = TokenRows(row if i % 3 else [*row, *continued[i // 3]] for i, row in enumerate(rows))
        first_token = 1 if prepend_bos and bos_token(lens) is not None else 0
        trees = []
        for i in range(0, len(rows), 3):
            texts = rows[i : i + 3]
            trees.append(Tree.of(texts, tuple(Span.of(text, position, first_token, seed) for text in texts)))
        return cls(demonstrations.names, rows, trees)

    def sequences(self, number: int) -> list[list[int]]:
        """The sequences of a demonstration's tree."""
        neutral, positive, negative = self.rows[3 * number : 3 * number + 3]
        return [positive, negative, neutral]
