"""Which parts take part, as a cooperative game: only-one, leave-one-out and Shapley values, and interactions of pairs.

A player is a part that can be on or off: a layer's edit, a head whose output is exchanged, an edit among several. Let
v(S) be what is measured while the players of S take part and no others (docs/method.md 7.2, 7.3 and 7.6). Of a player:

- `only_one`: v(it alone) − v(nobody), what it does by itself;
- `leave_one_out`: v(everybody) − v(everybody but it), what is lost without it;
- `shapley`: the average over all orders of joining of what it adds (Shapley 1953; Castro et al. 2009 for sampling,
  antithetic orders after Mitchell et al. 2022); sums to v(everybody) − v(nobody) exactly.

Of a pair: what both add beyond what each adds, v(S + both) − v(S + one) − v(S + other) + v(S), where S is nobody,
everybody else, or the average of the Shapley interaction index (Grabisch & Roubens 1999).
"""

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ..edits.base import Edit
from ..edits.where import Where
from .study import Study

METHODS = ("shapley", "leave_one_out", "only_one")
MAX_EXACT_PLAYERS = 10

Coalition: TypeAlias = frozenset[Any]
Worths: TypeAlias = Mapping[Coalition, Float[Tensor, " contrasts"]]
"""Of each set of players, what is measured on each contrast."""


@dataclass(frozen=True)
class Game:
    """Players, and what is measured with some of them.

    Attributes:
        players: each once.
        worths: measures some coalitions, and says on the way what for; each is asked for once (`measured`).
    """

    players: tuple[Hashable, ...]
    worths: Callable[[Sequence[Coalition], str], Worths]
    _known: dict[Coalition, Float[Tensor, " contrasts"]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, study: Study, heads: Sequence[int | None] = (None,)) -> "Game":
        """The game of the parts of a study's edit: its layers, or these heads of each.

        Raises:
            InputError: the method acts on the whole model or not at all, so that no part of it can play alone.
        """
        players = tuple((layer, head) for layer in study.layers for head in heads)
        check_parts(study.edit, study.model, study.where, scoring=True)
        return cls(players, study.with_each)

    @property
    def everybody(self) -> Coalition:
        """All players."""
        return frozenset(self.players)

    def values(
        self, method: str, *, permutations: int, seed: int
    ) -> tuple[Float[Tensor, "contrasts players"], dict[str, Any]]:
        """Each player's value for each contrast by one of `METHODS`, and what the method says of itself."""
        if method == "shapley" and len(self.players) > MAX_EXACT_PLAYERS:
            return self._sampled(permutations, seed)
        bases = {player: self._bases(method, (player,)) for player in self.players}
        v = self.measured(method, (b | some for p, of in bases.items() for b, _ in of for some in (frozenset(), {p})))
        items = [torch.stack([w * (v[b | {p}] - v[b]) for b, w in of]).sum(0) for p, of in bases.items()]
        exact = {"exact": True, "evaluations": 2 ** len(self.players)} if method == "shapley" else {}
        return torch.stack(items, 1), exact

    def interactions(
        self, method: str, *, permutations: int, seed: int
    ) -> tuple[Float[Tensor, "contrasts pairs"], dict[str, Any]]:
        """What each pair adds beyond its two, in the order of `pairs`, and what the method says of itself."""
        if method == "shapley" and len(self.players) > MAX_EXACT_PLAYERS:
            return self._sampled_interactions(permutations, seed)
        bases = {pair: self._bases(method, pair) for pair in self.pairs}
        wanted = (b | some for pair, of in bases.items() for b, _ in of for some in _within(pair))
        v = self.measured(method, wanted)
        items = [torch.stack([w * _second_difference(v, b, *pair) for b, w in of]).sum(0) for pair, of in bases.items()]
        return torch.stack(items, 1), {}

    @property
    def pairs(self) -> list[tuple[Any, Any]]:
        """All pairs of players, in the order of the players."""
        return list(itertools.combinations(self.players, 2))

    def measured(self, method: str, coalitions: Iterable[Coalition]) -> Worths:
        """The worth of these coalitions, and of all that were measured before."""
        unknown = [one for one in dict.fromkeys(map(frozenset, coalitions)) if one not in self._known]
        if unknown:
            self._known.update(self.worths(unknown, method.replace("_", " ")))
        return self._known

    def joint(self, method: str) -> Float[Tensor, " contrasts"]:
        """What all players do together."""
        v = self.measured(method, [frozenset(), self.everybody])
        return v[self.everybody] - v[frozenset()]

    def _bases(self, method: str, joining: tuple[Any, ...]) -> list[tuple[Coalition, float]]:
        """The sets that some players join, with the weight of each; exact."""
        others = [player for player in self.players if player not in joining]
        if method == "only_one":
            return [(frozenset(), 1.0)]
        if method == "leave_one_out":
            return [(frozenset(others), 1.0)]
        n = len(others)
        return [
            (frozenset(some), math.factorial(size) * math.factorial(n - size) / math.factorial(n + 1))
            for size in range(n + 1)
            for some in itertools.combinations(others, size)
        ]

    def _sampled(self, permutations: int, seed: int) -> tuple[Float[Tensor, "contrasts players"], dict[str, Any]]:
        n = len(self.players)
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(n, generator=generator).tolist() for _ in range(permutations)]
        v = self.measured("shapley", (c for order in orders for one in (order, order[::-1]) for c in self._joined(one)))
        # An order and its reverse are averaged into one sample: their errors tend to cancel.
        samples = [(self._gains(v, order) + self._gains(v, order[::-1])) / 2 for order in orders]
        error = _error([sample.mean(0) for sample in samples])
        told = {"exact": False, "permutations": 2 * permutations, "sampling_errors": error.tolist()}
        return torch.stack(samples).mean(0), told

    def _joined(self, order: Sequence[int]) -> list[Coalition]:
        """Who is there after each joining, beginning with nobody."""
        return [frozenset(self.players[place] for place in order[:size]) for size in range(len(order) + 1)]

    def _gains(self, v: Worths, order: Sequence[int]) -> Float[Tensor, "contrasts players"]:
        """What each player adds on joining in this order."""
        joined = self._joined(order)
        added = [v[after] - v[before] for before, after in itertools.pairwise(joined)]
        return torch.stack([added[order.index(place)] for place in range(len(order))], 1)

    def _sampled_interactions(
        self, permutations: int, seed: int
    ) -> tuple[Float[Tensor, "contrasts pairs"], dict[str, Any]]:
        """The index from neighbours in orders: whoever stands in front of two neighbours is the set that they join.

        One round is n orders of players that are numbered at random: 0, 1, −1, 2, −2, … and its shifts modulo n, in
        which every pair is neighbours twice. Each order by itself is uniform, so that sets have the index's weights.
        """
        n = len(self.players)
        generator = torch.Generator().manual_seed(seed)
        steps = [(k + 1) // 2 if k % 2 else -(k // 2) for k in range(n)]
        rounds = max(2, math.ceil(2 * permutations / n))
        drawn = [torch.randperm(n, generator=generator).tolist() for _ in range(rounds)]
        met = [
            [
                (frozenset(order[:at]), (order[at], order[at + 1]))
                for shift in range(n)
                for order in ([self.players[of[(shift + step) % n]] for step in steps],)
                for at in range(n - 1)
            ]
            for of in drawn
        ]
        v = self.measured("shapley", (base | some for one in met for base, pair in one for some in _within(pair)))
        found = []
        for one in met:
            of_pairs: dict[Coalition, list[Tensor]] = {frozenset(pair): [] for pair in self.pairs}
            for base, pair in one:
                of_pairs[frozenset(pair)].append(_second_difference(v, base, *pair))
            found.append(torch.stack([torch.stack(some).mean(0) for some in of_pairs.values()], 1))
        error = _error([one.mean(0) for one in found])
        return torch.stack(found).mean(0), {"exact": False, "rounds": rounds, "sampling_errors": error.tolist()}


def check_parts(edit: Edit, model: Any, where: Where, *, scoring: bool) -> None:
    """Refuse an edit that acts on all of its layers or on none, and so has no layers that could play alone.

    Raises:
        InputError: as the edit says it.
    """
    if len(where.layers) > 1:
        first = where.layers[0]
        edit.check_strengths(model, where.with_strengths({first: where.strengths[first]}), scoring=scoring)


def _within(pair: Iterable[Any]) -> list[Coalition]:
    """Nobody of a pair, one, the other, and both."""
    one, other = pair
    return [frozenset(), frozenset({one}), frozenset({other}), frozenset({one, other})]


def _second_difference(v: Worths, base: Coalition, one: Any, other: Any) -> Float[Tensor, " contrasts"]:
    return v[base | {one, other}] - v[base | {one}] - v[base | {other}] + v[base]


def _error(samples: Sequence[Float[Tensor, " parts"]]) -> Float[Tensor, " parts"]:
    """Standard error of the mean of samples; NaN of one."""
    if len(samples) < 2:
        return torch.full_like(samples[0], math.nan)
    return torch.stack(list(samples)).std(0) / math.sqrt(len(samples))


def sampling_errors(details: Mapping[str, Any]) -> Float[Tensor, " players"] | None:
    """Standard errors of sampled values over the orders drawn, from what the method says; None if exact."""
    errors = details.get("sampling_errors")
    return None if errors is None else torch.tensor(errors, dtype=torch.float64)
