"""Results of the contribution analyses: labelled values, what they sum to, and how far that is from the effect."""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer
from .._support.statistics import Interval, bootstrap, bootstrap_bounds

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from .describe import DirectionDescription


@dataclass(frozen=True, eq=False)
class Contributions(ABC):
    """What each part contributes to an edit's effect, on every contrast.

    Attributes:
        method: how it was measured.
        item_values: contribution of each part to each contrast's effect.
        item_effects: effect on each contrast.
        details: what the method reports of itself (quadrature nodes, permutations, correlation).
        control_values: mean contributions under each control edit (`control=`), None where there was none.
    """

    method: str
    item_values: Float[Tensor, "contrasts *parts"]
    item_effects: Float[Tensor, " contrasts"]
    details: dict[str, Any] = field(default_factory=dict, kw_only=True)
    control_values: Float[Tensor, "draws *parts"] | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def labels(self) -> Sequence[Hashable]:
        """The parts' names, in the order of `values.flatten()`."""

    @property
    def unit(self) -> str:
        """Unit of values and effect."""
        return "nats"

    @property
    def effect(self) -> float:
        """Δ: mean effect of the whole edit."""
        return self.item_effects.mean().item()

    @property
    def values(self) -> Float[Tensor, "*parts"]:
        """Mean contribution of each part."""
        return self.item_values.mean(0)

    @property
    def standard_errors(self) -> Float[Tensor, "*parts"]:
        """Standard error of each mean over contrasts; NaN with a single contrast."""
        n = len(self.item_values)
        return self.item_values.std(0) / math.sqrt(n) if n > 1 else self.values * math.nan

    @property
    def total(self) -> float:
        """Sum of the values; what it should be depends on the method."""
        return self.values.sum().item()

    @property
    def closure_error(self) -> float:
        """|total − Δ|."""
        return abs(self.total - self.effect)

    def interval(self, label: Hashable) -> Interval:
        """Bootstrap interval of one part's contribution over contrasts; paired, as each item is a difference.

        Raises:
            ValueError: there is no such part.
        """
        place = list(self.labels).index(label)
        return bootstrap(rearrange(self.item_values, "contrasts ... -> contrasts (...)")[:, place].numpy())

    def top(self, k: int = 5) -> list[tuple[Any, float]]:
        """The k parts of largest absolute contribution, as (label, value)."""
        k = as_integer(k, "k", least=0)
        flat, labels = self.values.flatten(), list(self.labels)
        order = flat.abs().argsort(descending=True, stable=True)[:k]
        return [(labels[i], flat[i].item()) for i in order.tolist()]

    def _columns(self) -> dict[str, Any]:
        """Value, standard error, bootstrap interval and range of the control, one entry a part."""
        low, high = bootstrap_bounds(rearrange(self.item_values, "contrasts ... -> contrasts (...)").numpy())
        columns = {
            "value": self.values.flatten().numpy(),
            "standard_error": self.standard_errors.flatten().numpy(),
            "low": low,
            "high": high,
        }
        if self.control_values is not None:
            columns["control_low"] = self.control_values.amin(0).flatten().numpy()
            columns["control_high"] = self.control_values.amax(0).flatten().numpy()
        return columns

    @abstractmethod
    def to_frame(self) -> "pd.DataFrame":
        """One row per part: its label and its numbers.

        The numbers are value, standard_error over contrasts, the bootstrap interval low and high, and where there is
        a control its lowest and highest value, control_low and control_high.
        """

    @abstractmethod
    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """A figure of the values that stands by itself."""

    def __str__(self) -> str:
        top = ", ".join(f"{_name(label)} {value:+.4g}" for label, value in self.top())
        return (
            f"{type(self).__name__}({self.method}): effect {self.effect:+.4g} {self.unit}, sum {self.total:+.4g} "
            f"(closure error {self.closure_error:.1e}); {top}"
        )


def _name(label: Any) -> str:
    return ".".join(map(str, label)) if isinstance(label, tuple) else str(label)


@dataclass(frozen=True, eq=False)
class LayerContributions(Contributions):
    """Contribution of each edited layer to the effect, in nats.

    Attributes:
        layers: the edited layers; entry i of `values` belongs to layers[i].
        Others as in `Contributions`; the method is "path", "shapley", "leave_one_out" or "only_one".
    """

    item_values: Float[Tensor, "contrasts layers"]
    layers: tuple[int, ...] = field(kw_only=True)

    @property
    def labels(self) -> tuple[int, ...]:
        """The layers."""
        return self.layers

    def to_frame(self) -> "pd.DataFrame":
        """One row per layer: layer and its numbers."""
        import pandas as pd

        return pd.DataFrame({"layer": self.layers, **self._columns()})

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """A bar for each layer, with its interval."""
        from ..plots.contributions import layer_bars

        return layer_bars(self, ax=ax)


@dataclass(frozen=True, eq=False)
class PositionContributions(Contributions):
    """Path contribution of each edited layer at each position, in nats.

    Attributes:
        layers: the edited layers, axis 1 of `item_values`.
        positions: counted from the prompt's last token, which is 0; tokens before it are negative, those of the
            completion positive. A position that a contrast does not have contributes 0 to it.
        Others as in `Contributions`.
    """

    item_values: Float[Tensor, "contrasts layers positions"]
    layers: tuple[int, ...] = field(kw_only=True)
    positions: tuple[int, ...] = field(kw_only=True)

    @property
    def labels(self) -> list[tuple[int, int]]:
        """(layer, position)."""
        return [(layer, position) for layer in self.layers for position in self.positions]

    def to_frame(self) -> "pd.DataFrame":
        """One row per layer and position: layer, position and their numbers."""
        import pandas as pd

        layers, positions = zip(*self.labels, strict=True)
        return pd.DataFrame({"layer": layers, "position": positions, **self._columns()})

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Layer × position map."""
        from ..plots.contributions import position_map

        return position_map(self, ax=ax)


@dataclass(frozen=True, eq=False)
class HeadContributions(Contributions):
    """Contribution of each head, `values[layer, head]`.

    Attributes:
        item_others: with "direct", contributions of everything that is no head, by name: "embedding",
            "attention_bias", "mlp", "edit" (the edit's own displacements); empty otherwise.
        Others as in `Contributions`. With "direct" values and effect are in logits: the change of the difference
        between the logits of the first tokens of target and foil, at the last prompt position, before any soft cap.
        With all other methods they are in nats, those of `effect`.
    """

    item_values: Float[Tensor, "contrasts n_layers n_heads"]
    item_others: dict[str, Float[Tensor, "contrasts n_layers"]] = field(default_factory=dict, kw_only=True)

    @property
    def labels(self) -> list[tuple[int, int]]:
        """(layer, head)."""
        _, n_layers, n_heads = self.item_values.shape
        return [(layer, head) for layer in range(n_layers) for head in range(n_heads)]

    @property
    def unit(self) -> str:
        """Unit of values and effect."""
        return "logits" if self.method == "direct" else "nats"

    @property
    def others(self) -> dict[str, Float[Tensor, " n_layers"]]:
        """Mean contributions of everything that is no head, by layer."""
        return {name: values.mean(0) for name, values in self.item_others.items()}

    @property
    def total(self) -> float:
        """Sum over heads and, with "direct", everything else: there it equals Δ up to rounding."""
        return self.values.sum().item() + sum(values.sum().item() for values in self.others.values())

    @property
    def closure_error(self) -> float:
        """Largest |total − Δ| of any contrast with "direct"; |total − Δ| of the means otherwise."""
        if not self.item_others:
            return abs(self.total - self.effect)
        totals = self.item_values.flatten(1).sum(1)
        for values in self.item_others.values():
            totals = totals + values.sum(1)
        return (totals - self.item_effects).abs().max().item()

    def to_frame(self) -> "pd.DataFrame":
        """One row per component: component ("head" or a name of `others`), layer, head and its numbers.

        What is no head has no entry for the head, and no number but its value.
        """
        import pandas as pd

        layers, heads = zip(*self.labels, strict=True)
        frame = pd.DataFrame({"component": "head", "layer": layers, "head": heads, **self._columns()})
        rows = [
            {"component": name, "layer": layer, "value": value}
            for name, values in self.others.items()
            for layer, value in enumerate(values.tolist())
        ]
        if rows:
            frame = pd.concat([frame, pd.DataFrame(rows)], ignore_index=True)
        return frame.astype({"head": "Int64"})

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Head × layer map."""
        from ..plots.contributions import head_map

        return head_map(self, ax=ax)


@dataclass(frozen=True, eq=False)
class DirectionContributions(Contributions):
    """Share of each singular direction in the effect, in nats; the shares of a layer add up to its path contribution.

    Attributes:
        directions: one label for each entry of `values`: (layer, side, index), at site `z` (layer, head, side, index).
            Side "+" is a column of U⁺ and "-" one of U⁻, by descending singular value; "norm" is the rescaling of the
            activation itself, and "centre" the constant that a centred edit, or a feature map with φ⁻¹(0) ≠ 0, adds.
        descriptions: of the directions that contribute most, by label.
        Others as in `Contributions`.
    """

    item_values: Float[Tensor, "contrasts directions"]
    directions: tuple[tuple[Any, ...], ...] = field(kw_only=True)
    descriptions: dict[tuple[Any, ...], "DirectionDescription"] = field(default_factory=dict, kw_only=True)

    @property
    def labels(self) -> tuple[tuple[Any, ...], ...]:
        """(layer, side, index), at site `z` (layer, head, side, index)."""
        return self.directions

    def by_layer(self) -> dict[int, float]:
        """Sum of the shares of each layer: its path contribution."""
        sums: dict[int, float] = {}
        for label, value in zip(self.directions, self.values.tolist(), strict=True):
            sums[label[0]] = sums.get(label[0], 0.0) + value
        return sums

    def to_frame(self) -> "pd.DataFrame":
        """One row per direction: layer, head (missing but at site `z`), side, index and its numbers.

        Those that are described have the tokens that they raise and lower beside them.
        """
        import pandas as pd

        frame = pd.DataFrame(
            {
                "layer": [label[0] for label in self.directions],
                "head": pd.array([label[1] if len(label) == 4 else None for label in self.directions], dtype="Int64"),
                "side": [label[-2] for label in self.directions],
                "index": [label[-1] for label in self.directions],
                **self._columns(),
            }
        )
        for name in ("raises", "lowers"):
            texts = [
                " ".join(token for token, _ in getattr(self.descriptions[label], name))
                if label in self.descriptions
                else ""
                for label in self.directions
            ]
            frame[name] = texts
        return frame

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Shares along the spectrum of each layer."""
        from ..plots.contributions import direction_spectrum

        return direction_spectrum(self, ax=ax)
