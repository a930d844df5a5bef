"""Differentiable log-probabilities of completions, each item in rows of its own (docs/method.md 6.1 and 6.2).

This is for contrasts and contributions, where a row must belong to one item. Benchmarks ask for many answers to long
prompts and for no gradient; `shared_prompts` scores them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from .._support.arguments import as_integer
from .._support.processes import mine, summed
from ..errors import DemonstrationError
from ..models.check import ensure_usable
from ..models.lens import Lens
from ..models.predictions import predict
from ..models.token_positions import telling
from ..models.tokens import batches, encode, encode_completions
from ..texts.demonstrations import Contrasts
from ..texts.items import Contrast
from .spans import Plan, Span, check_log_probs


@dataclass(frozen=True)
class ScoringBatch:
    """Some sequences to run, and which of their next-token log-probabilities count for which completion.

    Attributes:
        tokens, mask: a right-padded batch.
        items: the item that each row belongs to.
        prompts: how many tokens of each row are its prompt.
        row, position, token, completion: one entry for each completion token: log p(token | row up to position)
            counts for that completion.
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    items: Int[Tensor, " batch"]
    prompts: Int[Tensor, " batch"]
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
        """Plan the scoring of (tokens, start of the completion) pairs, each belonging to an item.

        Raises:
            UnsupportedModelError, InputError: the model is not what it should be, or drops out units at random.
        """
        ensure_usable(lens)
        batch_size = as_integer(batch_size, "batch_size", least=1)
        plan = Plan.of([Span(tuple(tokens), start) for tokens, start in completions], apart=items)
        planned = []
        for batch in batches(plan.inputs, batch_size):
            belongs = torch.tensor([items[plan.wanted[place][0][0]] for place in batch.rows])
            prompts = torch.tensor([plan.prompts[place] for place in batch.rows])
            planned.append(ScoringBatch(batch.tokens, batch.mask, belongs, prompts, *plan.entries(batch.rows)))
        return cls(lens, tuple(planned), plan.n)

    def batch_log_probs(self, batch: ScoringBatch) -> Float[Tensor, " n"]:
        """Log-probability of each entry of a batch under the model as it is now, float32 at least, differentiable."""
        with telling(self.lens, batch.prompts.tolist()):
            found = predict(self.lens, batch.tokens, batch.mask)
        return found.log_probs(batch.row, batch.position, batch.token)

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

        def added() -> list[Tensor]:
            with torch.no_grad():
                for batch in mine(self.batches):
                    total.index_add_(0, batch.completion, self.batch_log_probs(batch).double().cpu())
            return [total]

        summed(added)
        check_log_probs(total)
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


@dataclass(frozen=True)
class EncodedContrasts:
    """The texts of contrasts as tokens, each text tokenised once.

    Attributes:
        names: what errors call each contrast.
        prompts: tokens of each prompt.
        completions: (tokens of prompt and completion, place where the completion starts), for the target of contrast i
            at 2 i and for its foil at 2 i + 1.
    """

    names: tuple[str, ...]
    prompts: tuple[list[int], ...]
    completions: tuple[tuple[list[int], int], ...]

    @classmethod
    def of(cls, lens: Lens, contrasts: Iterable[Contrast], prepend_bos: bool = True) -> "EncodedContrasts":
        """Tokenise contrasts.

        Raises:
            DemonstrationError: a text that is too long or a completion without tokens; names the contrast.
        """
        contrasts = Contrasts.of(contrasts)
        encoded = [
            encode_completions(
                lens,
                contrast.prompt,
                {f"{name}, target,": contrast.target, f"{name}, foil,": contrast.foil},
                prepend_bos=prepend_bos,
            )
            for name, contrast in zip(contrasts.names, contrasts, strict=True)
        ]
        prompts = tuple(prompt for prompt, _ in encoded)
        return cls(contrasts.names, prompts, tuple(one for _, completions in encoded for one in completions))

    def picked(self, places: Sequence[int]) -> "EncodedContrasts":
        """Those in these places."""
        names, prompts = tuple(self.names[i] for i in places), tuple(self.prompts[i] for i in places)
        return EncodedContrasts(
            names, prompts, tuple(self.completions[2 * i + side] for i in places for side in (0, 1))
        )

    def scorer(self, lens: Lens, batch_size: int) -> Scorer:
        """A scorer of the targets and foils, in the order of `completions`."""
        return Scorer.of(lens, self.completions, [i // 2 for i in range(len(self.completions))], batch_size)


def contrast_scorer(
    model: Any, contrasts: Iterable[Contrast], *, batch_size: int = 16, prepend_bos: bool = True
) -> Scorer:
    """A scorer of the targets and foils of contrasts: completion 2 i is the target of contrast i, 2 i + 1 its foil.

    Raises:
        DemonstrationError: a text that is too long or a completion without tokens; names the contrast.
    """
    lens = Lens.of(model)
    return EncodedContrasts.of(lens, contrasts, prepend_bos).scorer(lens, batch_size)


def contrast_values(log_probs: Float[Tensor, " completions"]) -> Float[Tensor, " contrasts"]:
    """Log p(target | prompt) − log p(foil | prompt) of each contrast, in nats, from a scorer's log-probabilities."""
    both = rearrange(log_probs, "(contrasts two) -> two contrasts", two=2)
    return both[0] - both[1]
