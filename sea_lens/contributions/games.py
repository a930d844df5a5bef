"""Which parts of an edit are switched on, as a cooperative game: only-one, leave-one-out and Shapley values.

A player is a layer, or at site `z` a head. Let f be the contrast as a function of who plays (SEA.md section 7):

- `only_one`: f(part alone) − f(nobody), what the part's edit does by itself;
- `leave_one_out`: f(everybody) − f(everybody but the part), what is lost without it;
- `shapley`: the average over all orders of joining of what the part adds (Shapley 1953; Castro et al. 2009 for
  sampling, antithetic orders after Mitchell et al. 2022); sums to f(everybody) − f(nobody) exactly.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.progress import tracked
from ..edits.activation import ActivationEdit
from ..edits.base import Edit
from ..measure.scorer import Scorer, contrast_values

METHODS = ("shapley", "leave_one_out", "only_one")
MAX_EXACT_PLAYERS = 10

Player: TypeAlias = tuple[int, int | None]
"""(layer, head); the head is None where the whole layer plays."""


class Game:
    """The contrast of each item as a function of which players' edits are on; each coalition is run once."""

    def __init__(
        self,
        model: Any,
        edit: Edit,
        scorer: Scorer,
        players: Sequence[Player],
        strength: Mapping[int, float | Tensor],
        combine: str | None,
    ) -> None:
        self.model, self.edit, self.scorer, self.combine = model, edit, scorer, combine
        self.players, self.strength = tuple(players), strength
        self._values: dict[frozenset[int], Float[Tensor, " contrasts"]] = {}

    @property
    def everybody(self) -> frozenset[int]:
        """All players, by their places in `players`."""
        return frozenset(range(len(self.players)))

    def value(self, coalition: frozenset[int]) -> Float[Tensor, " contrasts"]:
        """Contrast of each item with only these players' edits on."""
        if coalition not in self._values:
            strengths = self._strengths(coalition)
            if not strengths:
                self._values[coalition] = contrast_values(self.scorer)
            else:
                with self.edit.applied(self.model, sorted(strengths), strengths, self.combine):
                    self._values[coalition] = contrast_values(self.scorer)
        return self._values[coalition]

    def _strengths(self, coalition: frozenset[int]) -> dict[int, float | Tensor]:
        strengths: dict[int, float | Tensor] = {}
        for layer, head in (self.players[place] for place in coalition):
            if head is None:
                strengths[layer] = self.strength[layer]
            else:
                assert isinstance(self.edit, ActivationEdit)
                on = torch.zeros(self.edit.shape[0], dtype=torch.float64)
                on[head] = 1.0
                strengths[layer] = strengths.get(layer, 0.0) + on * self.strength[layer]
        return strengths

    def values(
        self, method: str, *, permutations: int, seed: int, progress: bool
    ) -> tuple[Float[Tensor, "contrasts players"], dict[str, Any]]:
        """Each player's value for each contrast by one of `METHODS`, and what the method says of itself."""
        nobody, everybody = frozenset[int](), self.everybody
        if method == "shapley" and len(everybody) <= MAX_EXACT_PLAYERS:
            return self._exact_shapley(progress)
        if method == "shapley":
            return self._sampled_shapley(permutations, seed, progress)
        places = tracked(range(len(everybody)), method.replace("_", " "), len(everybody), show=progress)
        if method == "only_one":
            gains = [self.value(frozenset({place})) - self.value(nobody) for place in places]
        else:
            gains = [self.value(everybody) - self.value(everybody - {place}) for place in places]
        return torch.stack(gains, 1), {}

    def _exact_shapley(self, progress: bool) -> tuple[Float[Tensor, "contrasts players"], dict[str, Any]]:
        n = len(self.players)
        items = torch.zeros(len(self.value(frozenset())), n, dtype=torch.float64)
        subsets = [frozenset(subset) for size in range(n) for subset in itertools.combinations(range(n), size)]
        for subset in tracked(subsets, "Shapley values", len(subsets), show=progress):
            weight = math.factorial(len(subset)) * math.factorial(n - len(subset) - 1) / math.factorial(n)
            for player in self.everybody - subset:
                items[:, player] += weight * (self.value(subset | {player}) - self.value(subset))
        return items, {"exact": True, "evaluations": 2**n}

    def _sampled_shapley(
        self, permutations: int, seed: int, progress: bool
    ) -> tuple[Float[Tensor, "contrasts players"], dict[str, Any]]:
        n = len(self.players)
        generator = torch.Generator().manual_seed(seed)
        items = torch.zeros(len(self.value(frozenset())), n, dtype=torch.float64)
        means = []
        for _ in tracked(range(permutations), "Shapley values", permutations, show=progress):
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
