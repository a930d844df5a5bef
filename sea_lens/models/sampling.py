"""Choosing the next token: the most probable one, or one drawn by temperature, top-k and top-p (docs/method.md 6.10).

What is ruled out, and how the rest is scaled, is what transformers' own `generate` does, in its order. A row draws with
a generator of its own, so that what it draws depends on no other row.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer, as_number
from ..errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How next tokens are chosen; fields as in `sl.generate`.

    Attributes:
        temperature: what logits are divided by; 0 takes the most probable token.
        top_p: the smallest set of most probable tokens that has this probability is drawn from.
        top_k: so many of the most probable tokens are drawn from; None for all.
        seed: of the draws.

    Raises:
        InputError: a number out of range, or `top_p` or `top_k` where nothing is drawn.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        temperature, top_p = as_number(self.temperature, "temperature"), as_number(self.top_p, "top_p")
        top_k = None if self.top_k is None else as_integer(self.top_k, "top_k", least=1)
        seed = as_integer(self.seed, "seed")
        if temperature < 0:
            raise InputError(f"temperature {temperature:g}: expected 0 (the most probable token) or more")
        if not 0 < top_p <= 1:
            raise InputError(f"top_p {top_p:g}: expected a probability above 0 and at most 1")
        if temperature == 0 and (top_p < 1 or top_k is not None):
            raise InputError("top_p and top_k limit what is drawn: expected a temperature above 0 beside them")
        plain = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def generators(self, prompts: Sequence[Sequence[int]]) -> list[torch.Generator]:
        """A generator for each prompt, seeded by the seed, the prompt, and how often that prompt came before.

        So a prompt is continued alike in any company, and the same prompt given twice is continued in two ways.
        """
        return [torch.Generator().manual_seed(seed) for seed in self.seeds(prompts)]

    def seeds(self, prompts: Sequence[Sequence[int]]) -> Iterator[int]:
        """What the generators are seeded by: whole numbers below 2 to the power of 63."""
        before: Counter[tuple[int, ...]] = Counter()
        for prompt in map(tuple, prompts):
            named = f"{self.seed} {before[prompt]} {' '.join(map(str, prompt))}"
            before[prompt] += 1
            yield int.from_bytes(hashlib.sha256(named.encode()).digest()[:8], "big") >> 1

    def choose(self, logits: Float[Tensor, "batch d_vocab"], generators: Sequence[torch.Generator]) -> list[int]:
        """The next token of each row.

        Args:
            logits: whose largest entry in each row is finite.
            generators: of the rows, from `generators`; each gives one number.
        """
        if self.temperature == 0:
            return logits.argmax(-1).tolist()
        # On the CPU and in float64, where a draw is the same on every device; the largest logit is 0, so that a tiny
        # temperature overflows to minus infinity alone.
        scores = logits.double().cpu()
        scores = scores - scores.max(-1, keepdim=True).values
        for warper in self._warpers:
            scores = warper(None, scores)
        cumulated = scores.softmax(-1).cumsum(-1)
        drawn = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
        # The first token whose cumulated probability exceeds the number, so that one of probability 0 is never taken.
        return torch.searchsorted(cumulated, drawn * cumulated[:, -1:], right=True)[:, 0].tolist()

    @property
    def _warpers(self) -> list[Any]:
        from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        warpers: list[Any] = [TemperatureLogitsWarper(self.temperature)]
        if self.top_k is not None:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        return warpers


GREEDY = Sampling()
