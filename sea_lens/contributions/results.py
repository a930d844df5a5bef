"""Results of the contribution analyses: labelled values, what they sum to, and how far that is from the effect."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..statistics import Interval, bootstrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LayerContributions:
    """Contribution of each edited layer to the effect, in nats.

    Attributes:
        method: "path", "shapley", "leave_one_out" or "only_one".
        layers: the edited layers; entry i of `values` belongs to layers[i].
        effect: Δ, the effect of the whole edit.
        item_values: the contribution of each layer to each contrast's Δ.
        item_effects: Δ of each contrast.
        details: what the method reports of itself (quadrature nodes, permutations).
    """

    method: str
    layers: tuple[int, ...]
    effect: float
    item_values: Float[Tensor, "contrasts layers"]
    item_effects: Float[Tensor, " contrasts"]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> Float[Tensor, " layers"]:
        """Mean contribution of each layer."""
        return self.item_values.mean(0)

    @property
    def total(self) -> float:
        """Sum of the values; equals Δ for path (up to quadrature) and shapley, need not for the others."""
        return self.values.sum().item()

    @property
    def closure_error(self) -> float:
        """|total − Δ|."""
        return abs(self.total - self.effect)

    def interval(self, layer: int) -> Interval:
        """Bootstrap interval of one layer's contribution over contrasts."""
        return bootstrap(self.item_values[:, self.layers.index(layer)].numpy())

    def top(self, k: int = 5) -> list[tuple[int, float]]:
        """The k layers of largest absolute contribution, as (layer, value)."""
        order = self.values.abs().argsort(descending=True, stable=True)[:k]
        return [(self.layers[i], self.values[i].item()) for i in order.tolist()]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: value and its bootstrap interval."""
        intervals = [self.interval(layer) for layer in self.layers]
        return pd.DataFrame(
            {
                "layer": self.layers,
                "value": self.values.numpy(),
                "low": [interval.low for interval in intervals],
                "high": [interval.high for interval in intervals],
            }
        )

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """A bar for each layer, with its interval."""
        from ..plots import layer_bars

        return layer_bars(self, ax=ax)


@dataclass(frozen=True)
class HeadContributions:
    """Contribution of each head to the change of the logit difference, in logits.

    Attributes:
        method: "direct".
        item_values: direct contribution of each head to each contrast's change.
        item_effects: change of each contrast's logit difference (first tokens of target and foil, at the last prompt
            position, before any soft cap).
        item_others: contributions of everything that is no head, by name: "embedding", "attention_bias", "mlp",
            "edit" (the edit's own displacements).
    """

    method: str
    item_values: Float[Tensor, "contrasts n_layers n_heads"]
    item_effects: Float[Tensor, " contrasts"]
    item_others: dict[str, Float[Tensor, "contrasts n_layers"]]

    @property
    def effect(self) -> float:
        """Δ: mean change of the logit difference."""
        return self.item_effects.mean().item()

    @property
    def values(self) -> Float[Tensor, "n_layers n_heads"]:
        """Mean contribution of each head."""
        return self.item_values.mean(0)

    @property
    def others(self) -> dict[str, Float[Tensor, " n_layers"]]:
        """Mean contributions of everything that is no head, by layer."""
        return {name: values.mean(0) for name, values in self.item_others.items()}

    @property
    def total(self) -> float:
        """Sum over heads and everything else; equals Δ up to rounding."""
        return self.values.sum().item() + sum(values.sum().item() for values in self.others.values())

    @property
    def closure_error(self) -> float:
        """Largest |total − Δ| of any contrast."""
        totals = self.item_values.flatten(1).sum(1)
        for values in self.item_others.values():
            totals = totals + values.sum(1)
        return (totals - self.item_effects).abs().max().item()

    def top(self, k: int = 5) -> list[tuple[tuple[int, int], float]]:
        """The k heads of largest absolute contribution, as ((layer, head), value)."""
        flat = self.values.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:k]
        n_heads = self.values.shape[1]
        return [(divmod(i, n_heads), flat[i].item()) for i in order.tolist()]

    def to_frame(self) -> pd.DataFrame:
        """One row per component: component, layer, head (missing where it is no head), value."""
        rows: list[dict[str, Any]] = [
            {"component": "head", "layer": layer, "head": head, "value": value}
            for layer, row in enumerate(self.values.tolist())
            for head, value in enumerate(row)
        ]
        for name, values in self.others.items():
            rows += [
                {"component": name, "layer": layer, "head": None, "value": value}
                for layer, value in enumerate(values.tolist())
            ]
        return pd.DataFrame(rows).astype({"head": "Int64"})

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Head × layer map."""
        from ..plots import head_map

        return head_map(self, ax=ax)
