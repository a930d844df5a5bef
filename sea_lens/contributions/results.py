"""The results of the analyses: what layers, positions, heads and directions contribute, as tables and figures."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.resampling import bootstrap_bounds
from ..spectral.direction_terms import Direction
from .base import Contributions, standard_errors

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

METHOD_TITLES = {
    "path": "integrated along the edit's strength",
    "shapley": "Shapley values",
    "leave_one_out": "what is lost without its edit",
    "only_one": "what its edit does alone",
    "direct": "change of what it writes to the logits itself",
    "sufficiency": "effect of giving its edited z to the unedited run",
    "necessity": "what is lost when it gets back its unedited z",
    "gradient": "first-order estimate of sufficiency",
    "pattern": "effect of giving its edited attention pattern to the unedited run",
    "value": "effect of giving its edited values to the unedited run",
}
POSITION_TITLES = {
    "sufficiency": "Effect of giving the unedited run the edited stream behind a layer at one position: of",
    "necessity": "What is lost when the stream behind a layer is unedited at one position: of",
    "gradient": "First-order estimate of what the stream behind a layer carries at one position: of",
}


@dataclass(frozen=True)
class DirectionDescription:
    """What a direction stands for (docs/method.md 8.4).

    Attributes:
        displacement: mean of the signed length of what the edit adds along the direction, over all tokens of the
            contrasts' prompts but BOS; for a plane the length of the mean.
        raises, lowers: tokens whose logits the mean displacement raises and lowers most when it is read off by the
            final norm's gain and the unembedding alone, as (token, change of logit for a unit step). Changes are
            relative to their mean over the vocabulary, which moves no probability.
        fires_on: the demonstrations whose neutral activation is largest along the direction in absolute value, as
            (index, aⱼ), or bⱼ for a column of U⁻ (docs/method.md 8.1), for a plane the length in it; empty where no
            demonstrations were given.
        texts: the neutral texts of these demonstrations.
        moved: the tokens of the contrasts' prompts that the edit moves most along the direction, as (the prompt with
            the token between «», signed length).
    """

    displacement: float
    raises: list[tuple[str, float]]
    lowers: list[tuple[str, float]]
    fires_on: list[tuple[int, float]]
    texts: list[str] = field(default_factory=list)
    moved: list[tuple[str, float]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class LayerContributions(Contributions):
    """Contribution of each edited layer to the effect, in nats (docs/method.md 7).

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

    def named(self, label: Any) -> str:
        """The layer by that word."""
        return f"layer {label}"

    def to_frame(self) -> "pd.DataFrame":
        """One row per layer: layer and its numbers."""
        import pandas as pd

        return pd.DataFrame({"layer": self.layers, **self.columns()})

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """A bar for each layer, with its interval."""
        from ..plots.contributions import layer_bars

        sums = self.method in ("path", "shapley")
        closing = f"\nsum {self.total:+.3f}, off the effect by {self.closure_error:.0e}" if sums else ""
        title = f"Layers: {METHOD_TITLES[self.method]}{closing}"
        return layer_bars(self.to_frame(), self.effect, title, controls=self.n_controls, ax=ax)


@dataclass(frozen=True, eq=False)
class PositionContributions(Contributions):
    """What each layer does at each position, in nats (docs/method.md 7.5 and 9.9).

    Attributes:
        layers: axis 1 of `item_values`: the edited layers, whose path contributions these are; from
            `stream_contributions` all layers of the model, behind which the stream is exchanged.
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

    def named(self, label: Any) -> str:
        """The layer, and the position."""
        return "layer {} at {}".format(*label)

    def to_frame(self) -> "pd.DataFrame":
        """One row per layer and position: layer, position and their numbers."""
        import pandas as pd

        layers, positions = zip(*self.labels, strict=True)
        return pd.DataFrame({"layer": layers, "position": positions, **self.columns()})

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Layer × position map."""
        from ..plots.contributions import position_map

        title = (
            f"{POSITION_TITLES.get(self.method, 'Where the edit acts: path contributions to')} {self.effect:+.3f} nats"
        )
        beside = {"beyond": _array(self.beyond_controls), "controls": self.n_controls}
        return position_map(self.values.numpy(), self.layers, self.positions, title, **beside, ax=ax)


@dataclass(frozen=True, eq=False)
class HeadContributions(Contributions):
    """Contribution of each head, `values[layer, head]` (docs/method.md 9).

    Attributes:
        item_others: with "direct", contributions of everything that is no head, by name: "embedding",
            "attention_bias", "mlp", "edit" (the edit's own displacements); empty otherwise.
        Others as in `Contributions`. With "direct" values and effect are in logits: the change of the difference
        between the logits of the first tokens of target and foil, at the last prompt position, before any soft cap.
        With all other methods they are in nats, and the effect is that of `sl.effect`.
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
    def other_standard_errors(self) -> dict[str, Float[Tensor, " n_layers"]]:
        """Standard error over contrasts of each mean in `others`; NaN with a single contrast."""
        return {name: standard_errors(values) for name, values in self.item_others.items()}

    @property
    def total(self) -> float:
        """Sum over heads and, with "direct", everything else: there it equals Δ up to rounding."""
        return self.values.sum().item() + sum(values.sum().item() for values in self.others.values())

    @property
    def closure_error(self) -> float:
        """Largest |total − Δ| of any contrast with "direct"; |total − Δ| of the means otherwise."""
        if not self.item_others:
            return abs(self.total - self.effect)
        return (self._item_totals - self.item_effects).abs().max().item()

    @property
    def _item_totals(self) -> Float[Tensor, " contrasts"]:
        others = [values.sum(1) for values in self.item_others.values()]
        return torch.stack([self.item_values.flatten(1).sum(1), *others]).sum(0)

    def to_frame(self) -> "pd.DataFrame":
        """One row per component: component ("head" or a name of `others`), layer, head and its numbers.

        What is no head has no entry for the head, and no control.
        """
        import pandas as pd

        layers, heads = zip(*self.labels, strict=True)
        frame = pd.DataFrame({"component": "head", "layer": layers, "head": heads, **self.columns()})
        if self.item_others:
            items = torch.cat(list(self.item_others.values()), dim=1)
            low, high = bootstrap_bounds(items.numpy())
            others = {
                "component": [name for name in self.item_others for _ in range(self.item_values.shape[1])],
                "layer": [layer for _ in self.item_others for layer in range(self.item_values.shape[1])],
                "value": items.mean(0).numpy(),
                "standard_error": standard_errors(items).numpy(),
                "low": low,
                "high": high,
            }
            frame = pd.concat([frame, pd.DataFrame(others)], ignore_index=True)
        return frame.astype({"head": "Int64"})

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Layer × head map."""
        from ..plots.contributions import head_map

        whole = f"whole edit {self.effect:+.3f} {self.unit}"
        if self.method == "direct":
            whole += f", heads {self.values.sum().item():+.3f}, closure error {self.closure_error:.0e}"
        elif "correlation" in self.details:
            heads = len(self.details["sampled_heads"])
            whole += f", correlation to exact {self.details['correlation']:.3f} on {heads} heads"
        title = f"Heads: {METHOD_TITLES[self.method]}\n{whole}"
        beside = {"beyond": _array(self.beyond_controls), "controls": self.n_controls}
        return head_map(self.values.numpy(), self.unit, title, **beside, ax=ax)


@dataclass(frozen=True, eq=False)
class DirectionContributions(Contributions):
    """Share of each direction in the effect, in nats (docs/method.md 8).

    The shares of a layer add up to its path contribution.

    Attributes:
        directions: one label for each entry of `values`: (layer, side, index), at site `z` (layer, head, side, index).
            In the basis "net" side "+" has eigenvalues above 0, what the edit raises, and "-" those below, what it
            lowers, by descending size. In the basis "sides" side "+" is a column of U⁺ and "-" one of U⁻, by descending
            singular value. In both "norm" is the rescaling of the activation itself, and "centre" the constant that is
            added, for a centred edit and for every feature map but the identity.
        basis: "net" or "sides".
        eigenvalues: in the basis "net" of each direction, from -1 to 1; empty otherwise.
        dimensions: in the basis "net" how many directions stand behind a label: more than one where their eigenvalues
            are equal or close, so that only the plane that they span is told apart; its index is that of the first.
        descriptions: of the directions that contribute most, by label.
        Others as in `Contributions`.
    """

    item_values: Float[Tensor, "contrasts directions"]
    directions: tuple[tuple[Any, ...], ...] = field(kw_only=True)
    basis: str = field(default="sides", kw_only=True)
    eigenvalues: dict[tuple[Any, ...], float] = field(default_factory=dict, kw_only=True)
    dimensions: dict[tuple[Any, ...], int] = field(default_factory=dict, kw_only=True)
    descriptions: dict[tuple[Any, ...], DirectionDescription] = field(default_factory=dict, kw_only=True)

    @property
    def labels(self) -> tuple[tuple[Any, ...], ...]:
        """(layer, side, index), at site `z` (layer, head, side, index)."""
        return self.directions

    def named(self, label: Any) -> str:
        """The layer, its head, and the direction's side and index, or what it is otherwise."""
        return Direction.of(label).named(self.basis)

    def by_layer(self) -> dict[int, float]:
        """Sum of the shares of each layer: its path contribution."""
        sums: dict[int, float] = {}
        for label, value in zip(self.directions, self.values.tolist(), strict=True):
            layer = Direction.of(label).layer
            sums[layer] = sums.get(layer, 0.0) + value
        return sums

    def to_frame(self) -> "pd.DataFrame":
        """One row per direction: layer, head (missing but at site `z`), side, index and its numbers.

        In the basis "net" with eigenvalue and dimensions. Directions that are described have the tokens that they raise
        and lower beside them.
        """
        import pandas as pd

        parts = [Direction.of(label) for label in self.directions]
        net: dict[str, Any] = {}
        if self.basis == "net":
            net["eigenvalue"] = [self.eigenvalues.get(label) for label in self.directions]
            net["dimensions"] = pd.array([self.dimensions.get(label) for label in self.directions], dtype="Int64")
        frame = pd.DataFrame(
            {
                "layer": [part.layer for part in parts],
                "head": pd.array([part.head for part in parts], dtype="Int64"),
                "side": [part.side for part in parts],
                "index": [part.index for part in parts],
                **net,
                **self.columns(),
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
        """Shares along the spectrum of each layer: of eigenvalues in the basis "net", else of singular values."""
        from ..plots.contributions import direction_spectrum

        raised = {label: f": {about.raises[0][0].strip()}" for label, about in self.descriptions.items()}
        names = [self.named(label) + raised.get(label, "") for label in self.directions]
        return direction_spectrum(self.to_frame(), names, self.effect, controls=self.n_controls, ax=ax)


def _array(known: Tensor | None) -> Any:
    return None if known is None else known.numpy()
