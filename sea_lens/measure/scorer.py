"""Log-probabilities of completions, batched and differentiable."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from .._support.arguments import as_integer
from ..errors import ActivationError, DemonstrationError
from ..models.lens import Lens
from ..models.tokens import batches, encode, encode_completion
from ..texts.demonstrations import Contrasts
from ..texts.items import Contrast


@dataclass(frozen=True)
class ScoringBatch:
    """Some sequences to run, and which of their next-token log-probabilities count for which completion.

    Attributes:
        tokens, mask: a right-padded batch.
        items: the item that each row belongs to.
        row, position, token, completion: one entry for each completion token: log p(token | row up to position)
            counts for that completion.
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    items: Int[Tensor, " batch"]
    row: Int[Tensor, " n"]
    position: Int[Tensor, " n"]
    token: Int[Tensor, " n"]
    completion: Int[Tensor, " n"]


@dataclass(frozen=True)
class Scorer:
    """A set of completions ready to be scored again and again, under different edits.

    Completions of one item whose inputs are the same share a row: two one-token answers to one prompt cost one
    forward. Items never share a row, so that whatever happens in a row belongs to one item.

    Attributes:
        lens: the model.
        batches: longest first.
        n: number of completions.
    """

    lens: Lens
    batches: tuple[ScoringBatch, ...]
    n: int

    @classmethod
    def of(
        cls, lens: Lens, completions: Sequence[tuple[list[int], int]], items: Sequence[int], batch_size: int
    ) -> "Scorer":
        """Plan the scoring of (tokens, start of the completion) pairs, each belonging to an item."""
        batch_size = as_integer(batch_size, "batch_size", least=1)
        inputs: dict[tuple[int, ...], int] = {}
        owners: list[list[tuple[int, int]]] = []
        for index, ((tokens, start), item) in enumerate(zip(completions, items, strict=True)):
            # The last token is only predicted, never read. The item in front keeps items apart.
            place = inputs.setdefault((item, *tokens[:-1]), len(inputs))
            if place == len(owners):
                owners.append([])
            owners[place].append((index, start))
        planned = []
        for batch in batches([key[1:] for key in inputs], batch_size):
            entries = [
                (row, position, completions[index][0][position + 1], index)
                for row, place in enumerate(batch.rows)
                for index, start in owners[place]
                for position in range(start - 1, len(completions[index][0]) - 1)
            ]
            keys = list(inputs)
            belongs = torch.tensor([keys[place][0] for place in batch.rows])
            columns = rearrange(torch.tensor(entries), "n field -> field n")
            planned.append(ScoringBatch(batch.tokens, batch.mask, belongs, *columns))
        return cls(lens, tuple(planned), len(completions))

    def batch_log_probs(self, batch: ScoringBatch) -> Float[Tensor, " n"]:
        """Log-probability of each entry of a batch under the model as it is now, in float32, differentiable."""
        logits = self.lens.forward(batch.tokens, batch.mask)
        log_probs = logits[batch.row, batch.position].float().log_softmax(-1)
        return log_probs[torch.arange(len(batch.token)), batch.token.to(log_probs.device)]

    @property
    def token_counts(self) -> Int[Tensor, " completions"]:
        """Tokens scored in each completion."""
        counts = torch.zeros(self.n, dtype=torch.int64)
        for batch in self.batches:
            counts += torch.bincount(batch.completion, minlength=self.n)
        return counts

    def log_probs(self) -> Float[Tensor, " completions"]:
        """Summed log-probability of each completion under the model as it is now, float64 on the CPU, no gradient.

        Raises:
            ActivationError: one is NaN or infinite.
        """
        total = torch.zeros(self.n, dtype=torch.float64)
        with torch.no_grad():
            for batch in self.batches:
                total.index_add_(0, batch.completion, self.batch_log_probs(batch).double().cpu())
        if not torch.isfinite(total).all():
            completion = int((~torch.isfinite(total)).nonzero()[0])
            raise ActivationError(f"the model gives completion {completion} a log-probability of {total[completion]}")
        return total


def text_scorer(model: Any, texts: Sequence[str], *, batch_size: int = 16, prepend_bos: bool = True) -> Scorer:
    """A scorer of whole texts: completion i is text i after its first token (BOS, where there is one).

    Raises:
        DemonstrationError: a text that is too long, or of fewer than two tokens; names it.
    """
    lens = Lens.of(model)
    encoded = [encode(lens, text, prepend_bos=prepend_bos, what=f"text {i}") for i, text in enumerate(texts)]
    for i, tokens in enumerate(encoded):
        if len(tokens) < 2:
            raise DemonstrationError(f"text {i} has a single token, so nothing in it is predicted")
    return Scorer.of(lens, [(tokens, 1) for tokens in encoded], range(len(encoded)), batch_size)


def contrast_scorer(
    model: Any, contrasts: Iterable[Contrast], *, batch_size: int = 16, prepend_bos: bool = True
) -> Scorer:
    """A scorer of the targets and foils of contrasts: completion 2 i is the target of contrast i, 2 i + 1 its foil.

    Raises:
        DemonstrationError: a text that is too long or a completion without tokens; names the contrast.
    """
    lens = Lens.of(model)
    contrasts = Contrasts.of(contrasts)
    completions = [
        encode_completion(lens, contrast.prompt, text, prepend_bos=prepend_bos, what=f"{what}, {name},")
        for what, contrast in zip(contrasts.names, contrasts, strict=True)
        for name, text in (("target", contrast.target), ("foil", contrast.foil))
    ]
    return Scorer.of(lens, completions, [i // 2 for i in range(len(completions))], batch_size)


def contrast_values(scorer: Scorer) -> Float[Tensor, " contrasts"]:
    """Log p(target | prompt) − log p(foil | prompt) of each contrast, in nats."""
    both = rearrange(scorer.log_probs(), "(contrasts two) -> two contrasts", two=2)
    return both[0] - both[1]
