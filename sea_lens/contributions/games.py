"""Which parts of an edit are switched on, as a cooperative game: only-one, leave-one-out and Shapley values.

A player is a part of the edit: a layer, or at site `z` a head. Let f be the contrast as a function of who plays
(docs/method.md 7.2 and 7.3):

- `only_one`: f(part alone) − f(nobody), what the part's edit does by itself;
- `leave_one_out`: f(everybody) − f(everybody but the part), what is lost without it;
- `shapley`: the average over all orders of joining of what the part adds (Shapley 1953; Castro et al. 2009 for
  sampling, antithetic orders after Mitchell et al. 2022); sums to f(everybody) − f(nobody) exactly.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.progress import tracked
from .study import Part, Study

METHODS = ("shapley", "leave_one_out", "only_one")
MAX_EXACT_PLAYERS = 10


@dataclass(frozen=True)
class Game:
    """The parts of a study's edit as players.

    Attributes:
        study: whose runs are the values of coalitions.
        players: the parts, all of which together are the whole edit.
    """

    study: Study
    players: tuple[Part, ...]

    @classmethod
    def of(cls, study: Study, heads: Sequence[int | None] = (None,)) -> "Game":
        """The game of a study's layers, or of these heads of each.

        Raises:
            InputError: the method acts on the whole model or not at all, so that no part of it can play alone.
        """
        players = tuple((layer, head) for layer in study.layers for head in heads)
        if len(study.layers) > 1:
            alone = study.where.with_strengths({study.layers[0]: study.where.strengths[study.layers[0]]})
            study.edit.check_strengths(study.model, alone, scoring=True)
        return cls(study, players)

    @property
    def everybody(self) -> frozenset[int]:
        """All players, by their places in `players`."""
        return frozenset(range(len(self.players)))

    def value(self, coalition: frozenset[int]) -> Float[Tensor, " contrasts"]:
        """Contrast of each item with only these players' edits on."""
        return self.study.with_parts(frozenset(self.players[place] for place in coalition))

    def values(
        self, method: str, *, permutations: int, seed: int
    ) -> tuple[Float[Tensor, "contrasts players"], dict[str, Any]]:
        """Each player's value for each contrast by one of `METHODS`, and what the method says of itself."""
        nobody, everybody, show = frozenset[int](), self.everybody, self.study.progress
        if method == "shapley" and len(everybody) <= MAX_EXACT_PLAYERS:
            return self._exact_shapley()
        if method == "shapley":
            return self._sampled_shapley(permutations, seed)
        places = tracked(range(len(everybody)), method.replace("_", " "), len(everybody), show=show)
        if method == "only_one":
            gains = [self.value(frozenset({place})) - self.value(nobody) for place in places]
        else:
            gains = [self.value(everybody) - self.value(everybody - {place}) for place in places]
        return torch.stack(gains, 1), {}

    def _exact_shapley(self) -> tuple[Float[Tensor, "contrasts players"], dict[str, Any]]:
        n = len(self.players)
        items = torch.zeros(len(self.value(frozenset())), n, dtype=torch.float64)
        subsets = [frozenset(subset) for size in range(n) for subset in itertools.combinations(range(n), size)]
        for subset in tracked(subsets, "Shapley values", len(subsets), show=self.study.progress):
            weight = math.factorial(len(subset)) * math.factorial(n - len(subset) - 1) / math.factorial(n)
            for player in self.everybody - subset:
                items[:, player] += weight * (self.value(subset | {player}) - self.value(subset))
        return items, {"exact": True, "evaluations": 2**n}

    def _sampled_shapley(
        self, permutations: int, seed: int
    ) -> tuple[Float[Tensor, "contrasts players"], dict[str, Any]]:
        n = len(self.players)
        generator = torch.Generator().manual_seed(seed)
        items = torch.zeros(len(self.value(frozenset())), n, dtype=torch.float64)
        means = []
        for _ in tracked(range(permutations), "Shapley values", permutations, show=self.study.progress):
            order = torch.randperm(n, generator=generator).tolist()
            # An order and its reverse are averaged into one sample: their errors tend to cancel.
            sample = (self._gains(order) + self._gains(order[::-1])) / 2
            items += sample / permutations
            means.append(sample.mean(0))
        error = torch.stack(means).std(0) / math.sqrt(permutations) if permutations > 1 else torch.full((n,), math.nan)
        return items, {"exact": False, "permutations": 2 * permutations, "sampling_errors": error.tolist()}

    def _gains(self, order: list[int]) -> Float[Tensor, "contrasts players"]:
        """What each player adds on joining in this order."""
        before = self.value(frozenset())
        items = torch.zeros(len(before), len(order), dtype=torch.float64)
        for place, player in enumerate(order):
            after = self.value(frozenset(order[: place + 1]))
            items[:, player] = after - before
            before = after
        return items


def sampling_errors(details: Mapping[str, Any]) -> Float[Tensor, " players"] | None:
    """Standard errors of sampled Shapley values over the orders drawn, from what the method says; None if exact."""
    errors = details.get("sampling_errors")
    return None if errors is None else torch.tensor(errors, dtype=torch.float64)
