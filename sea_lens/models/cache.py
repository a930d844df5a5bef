"""Keys and values of what a model has read, so that texts that begin alike are read only once.

Rows may be padded on the left before their first token and on the right after their last one, never in between. Every
position and every sliding window is then exact on every backend: where a cache is not (`cache_probe`), the whole row
is read again at every step, which is slower and gives the same logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .cache_probe import CachedReading, cached_reading, distrust
from .cached_pass import cached_pass, holds, selected, whole_pass
from .lens import Lens
from .predictions import Predictions
from .token_positions import telling


@dataclass(frozen=True)
class Past:
    """What a model has read in each of some rows; never changed, every step makes a new one.

    Attributes:
        lens: the model.
        rows: number of rows.
        mask: 1 on the tokens that each row has read, 0 on padding; None before the first token.
        tokens: what each row has read, padding included; None before the first token.
        state: the backend's own cache, None before the first token and where rows are read whole.
        prompts: how many tokens of each row are its prompt, padding not counted; None before the first token.
    """

    lens: Lens
    rows: int
    mask: Int[Tensor, "batch past"] | None = None
    tokens: Int[Tensor, "batch past"] | None = None
    state: Any = None
    prompts: tuple[int, ...] | None = None

    def read(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"] | None = None,
        prompts: Sequence[int] | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], "Past"]:
        """Logits of the next tokens, float32 at least, and the past that includes them; arguments as in `predict`."""
        found, past = self.predict(tokens, mask, prompts)
        return found.whole(), past

    def predict(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"] | None = None,
        prompts: Sequence[int] | None = None,
    ) -> tuple[Predictions, "Past"]:
        """Predictions behind each of the next tokens, and the past that includes them.

        Args:
            tokens: as many rows as this past has.
            mask: 1 on tokens, 0 on padding; all tokens by default. Padding on the left is allowed only before a row's
                very first token; rows that were padded on the right cannot be read on from. Predictions at padding mean
                nothing.
            prompts: how many tokens of each row are its prompt, those read before counted; by default what was said
                before, and at first all that is read.
        """
        past, found = self._extended(tokens, mask, prompts)
        if found is None:
            assert past.tokens is not None
            assert past.mask is not None
            assert past.prompts is not None
            with torch.no_grad(), telling(self.lens, past.prompts, self._before):
                apart = cached_reading(self.lens, past.mask.shape[1] + self.lens.prefix_length).apart
                found = whole_pass(self.lens, past.tokens, past.mask, apart=apart)
            found = found.rearranged(lambda states: states[:, states.shape[1] - tokens.shape[1] :])
        return found, past

    def extended(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"] | None = None,
        prompts: Sequence[int] | None = None,
    ) -> "Past":
        """The past that includes the next tokens, where nobody asks what follows them; arguments as in `predict`.

        Without a cache they are read when something that follows is.
        """
        return self._extended(tokens, mask, prompts)[0]

    def _extended(
        self, tokens: Tensor, mask: Tensor | None, prompts: Sequence[int] | None
    ) -> "tuple[Past, Predictions | None]":
        """The past with the next tokens, and what is predicted behind these; None where rows must be read whole."""
        new = torch.ones_like(tokens) if mask is None else mask
        new, tokens = new.to(self.lens.device), tokens.to(self.lens.device)
        whole = new if self.mask is None else torch.cat([self.mask, new], 1)
        read = tokens if self.tokens is None else torch.cat([self.tokens, tokens], 1)
        known = tuple(prompts or self.prompts or new.sum(1).tolist())
        with torch.no_grad():
            reading = cached_reading(self.lens, whole.shape[1] + self.lens.prefix_length)
            with telling(self.lens, known, self._before):
                found, state = self._read_on(tokens, whole, reading)
        return replace(self, mask=whole, tokens=read, state=state, prompts=known), found

    def _before(self) -> list[list[int]]:
        """Tokens that each row has read."""
        if self.mask is None or self.tokens is None:
            return [[] for _ in range(self.rows)]
        return [row[kept.bool()].tolist() for row, kept in zip(self.tokens, self.mask, strict=True)]

    def select(self, rows: Sequence[int]) -> "Past":
        """The past of these rows; a row may come several times."""
        if self.mask is None or self.tokens is None:
            return replace(self, rows=len(rows))
        index = torch.tensor(list(rows), device=self.lens.device)
        state = None if self.state is None else selected(self.state, index)
        prompts = None if self.prompts is None else tuple(self.prompts[row] for row in rows)
        return replace(
            self, rows=len(rows), mask=self.mask[index], tokens=self.tokens[index], state=state, prompts=prompts
        )

    def _read_on(self, tokens: Tensor, whole: Tensor, reading: CachedReading) -> tuple[Predictions | None, Any]:
        """Predictions and the cache behind them; None for both where the rows must be read whole."""
        begun_whole = self.state is None and self.mask is not None
        if begun_whole or reading.way == "whole" or not (reading.padded or bool(whole[:, 0].all())):
            return None, None
        try:
            found, state = cached_pass(self.lens, tokens, whole, self.state, renamed=reading.way == "renamed")
        except torch.OutOfMemoryError:
            raise
        # Fused attention cannot run where a cache holds less than the mask says; what is wrong otherwise is so again
        # in the pass that reads the rows whole.
        except RuntimeError:
            distrust(self.lens)
            return None, None
        if not holds(state, whole.shape[1] + self.lens.prefix_length):
            distrust(self.lens)
            return None, None
        return found, state
