"""What parts do alone and in pairs: the result (docs/method.md 7.6)."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Contributions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Interactions(Contributions):
    """What each player adds, and what each pair adds beyond its two, in nats (docs/method.md 7.6).

    Attributes:
        players: layers of the edit, the places of composed edits, or heads and MLPs as (layer, head) and
            (layer, "mlp").
        pairs: of them; a pair above 0 does more together than each apart, one below 0 does in part the same.
        item_joint: what all players do together, of each contrast: the whole effect where they are all of the edit's
            layers, and what exchanging all of them keeps where they are nodes.
        Others as in `Contributions`; values of players stand before those of pairs, and the method is "shapley",
        "leave_one_out" or "only_one".
    """

    item_values: Float[Tensor, "contrasts parts"]
    players: tuple[Hashable, ...] = field(kw_only=True)
    pairs: tuple[tuple[Hashable, Hashable], ...] = field(kw_only=True)
    item_joint: Float[Tensor, " contrasts"] = field(kw_only=True)

    @property
    def labels(self) -> list[tuple[Hashable, ...]]:
        """(player,), then (player, player)."""
        return [*((player,) for player in self.players), *self.pairs]

    def named(self, label: Any) -> str:
        """A player, or both of a pair."""
        return " with ".join(map(_name, label))

    @property
    def joint(self) -> float:
        """What all players do together."""
        return self.item_joint.mean().item()

    @property
    def total(self) -> float:
        """Sum over the players: with "shapley" what they do together."""
        return self.values[: len(self.players)].sum().item()

    @property
    def closure_error(self) -> float:
        """|total − joint|."""
        return abs(self.total - self.joint)

    @property
    def item_closure_error(self) -> float:
        """Root mean square over contrasts of how far the players' sum is from what they do together."""
        return (self.item_values[:, : len(self.players)].sum(1) - self.item_joint).square().mean().sqrt().item()

    def singles(self) -> dict[Hashable, float]:
        """The value of each player."""
        return dict(zip(self.players, self.values.tolist(), strict=False))

    def top_pairs(self, k: int = 5) -> list[tuple[tuple[Hashable, ...], float]]:
        """The k pairs of largest absolute interaction."""
        return [(label, value) for label, value in self.top(len(self.labels)) if len(label) == 2][:k]

    @property
    def matrix(self) -> Float[Tensor, "players players"]:
        """Interactions by players; on the diagonal their own values."""
        return self._square(self.values)

    def _square(self, values: Tensor) -> Float[Tensor, "players players"]:
        n = len(self.players)
        found = torch.diag(values[:n].double())
        rows, columns = torch.triu_indices(n, n, offset=1)
        found[rows, columns] = found[columns, rows] = values[n:].double()
        return found

    def to_frame(self) -> "pd.DataFrame":
        """One row per player and per pair: first, second (empty for a player) and its numbers."""
        import pandas as pd

        named = [[_name(player) for player in label] + [""] * (2 - len(label)) for label in self.labels]
        first, second = zip(*named, strict=True)
        return pd.DataFrame({"first": first, "second": second, **self.columns()})

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Map of the pairs, with the players' own values on the diagonal."""
        from ..plots.contributions import interaction_map

        beyond: Any = None
        if self.beyond_controls is not None:
            beyond = self._square(self.beyond_controls).bool().numpy()
        names = [_name(player) for player in self.players]
        told = {"beyond": beyond, "controls": self.n_controls}
        return interaction_map(self.matrix.numpy(), names, self.method, self.effect, **told, ax=ax)


def _name(player: Hashable) -> str:
    return ".".join(map(str, player)) if isinstance(player, tuple) else str(player)
