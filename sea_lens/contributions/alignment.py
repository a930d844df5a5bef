"""Positions counted from the last token of the prompt, so that texts of different lengths stand beside each other.

The last token of every prompt is 0; tokens before it are negative, those of the completion positive (docs/method.md
7.5).
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..measure.scorer import ScoringBatch
from .study import Study


@dataclass(frozen=True)
class Places:
    """The columns of a table of positions.

    Attributes:
        positions: one for each column.
        lengths: tokens of each contrast's prompt.
    """

    positions: tuple[int, ...]
    lengths: Int[Tensor, " contrasts"]

    @classmethod
    def of(cls, study: Study) -> "Places":
        """Those of a study's contrasts, from the first token of the longest prompt on."""
        lengths = torch.tensor([len(prompt) for prompt in study.contrasts.prompts])
        origin = int(lengths.max()) - 1
        longest = max(int((batch.mask.sum(1) - lengths[batch.items]).max()) for batch in study.scorer.batches)
        return cls(tuple(range(-origin, 1 + max(0, longest))), lengths)

    def columns(self, batch: ScoringBatch) -> Int[Tensor, "batch pos"]:
        """The column of each token of a batch; of padding as if it were text."""
        first = -self.positions[0] + 1 - self.lengths[batch.items]
        return rearrange(first, "batch -> batch 1") + torch.arange(batch.tokens.shape[1])

    def at(self, position: int, batch: ScoringBatch) -> Bool[Tensor, "batch pos"]:
        """Where the tokens of a batch stand at a position."""
        return (self.columns(batch) == position - self.positions[0]) & batch.mask.bool()

    def aligned(self, values: Float[Tensor, "batch pos"], batch: ScoringBatch) -> Float[Tensor, "batch positions"]:
        """Each row moved to its columns; padding, where all gradients are zero, is left out."""
        found = torch.zeros(len(values), len(self.positions), dtype=values.dtype)
        rows, at = batch.mask.bool().nonzero(as_tuple=True)
        found[rows, self.columns(batch)[rows, at]] = values[rows, at]
        return found
