"""What goes from an edited layer into a head, by which way: the result (docs/method.md 9.7)."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Contributions
from .edges import ALL, Edge

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Mediation(Contributions):
    """The effect that passes along each edge, in nats (docs/method.md 9.7).

    Attributes:
        edges: one label for each entry of `values`: (layer, to_layer, to, way). The layer is that of the edit, or "all"
            for the whole change of the stream; `to` is a head, "mlp" or "logits"; the way "q", "k" or "v" of a head,
            and from "all" also "qk" for its pattern and "all" for the three together; "in" of the others.
        Others as in `Contributions`; the method is "gradient" or "exact".
    """

    item_values: Float[Tensor, "contrasts edges"]
    edges: tuple[Edge, ...] = field(kw_only=True)

    @property
    def labels(self) -> tuple[Edge, ...]:
        """(layer, to_layer, to, way)."""
        return self.edges

    def named(self, label: Any) -> str:
        """From which layer, into what, and by which way."""
        layer, to_layer, to, way = label
        sender = "all layers" if layer == ALL else f"layer {layer}"
        receiver = "logits" if to == "logits" else f"{to_layer}.{to}"
        return f"{sender} to {receiver}" + ("" if way == "in" else f" by {way}")

    def by_layer(self) -> dict[int, float]:
        """Sum over the edges of each edited layer: with "gradient" the slope of its displacement."""
        sums: dict[int, float] = {}
        for (layer, *_), value in zip(self.edges, self.values.tolist(), strict=True):
            if layer != ALL:
                sums[layer] = sums.get(layer, 0.0) + value
        return sums

    def by_way(self) -> dict[tuple[Any, str], float]:
        """Sum over edited layers and receivers of each kind and way: (head, q), …, (mlp, in), (logits, in)."""
        sums: dict[tuple[Any, str], float] = {}
        for (layer, _, to, way), value in zip(self.edges, self.values.tolist(), strict=True):
            if layer != ALL:
                key = (to if isinstance(to, str) else "head", way)
                sums[key] = sums.get(key, 0.0) + value
        return sums

    def heads(self, way: str, layer: Any = None) -> Float[Tensor, "n_layers n_heads"]:
        """What enters each head by a way, from one edited layer or "all", or summed over the edited ones."""
        places = [edge for edge in self.edges if not isinstance(edge[2], str)]
        shape = 1 + max(edge[1] for edge in places), 1 + max(edge[2] for edge in places)
        found = torch.zeros(shape, dtype=torch.float64)
        for (sender, to_layer, head, one), value in zip(self.edges, self.values.tolist(), strict=True):
            wanted = sender != ALL if layer is None else sender == layer
            if wanted and one == way and not isinstance(head, str):
                found[to_layer, head] += value
        return found

    def to_frame(self) -> "pd.DataFrame":
        """One row per edge: layer, to_layer, to, way and its numbers."""
        import pandas as pd

        layers, to_layers, to, ways = zip(*self.edges, strict=True)
        named = {"layer": list(map(str, layers)), "to_layer": to_layers, "to": list(map(str, to)), "way": ways}
        return pd.DataFrame({**named, **self.columns()})

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """The largest edges as bars, with intervals and the range of the controls."""
        from ..plots.circuits import edge_bars

        names = [self.named(label) for label in self.labels]
        return edge_bars(self.to_frame(), names, self.effect, self.method, controls=self.n_controls, ax=ax)
