"""How few directions carry an edit: the result (docs/method.md 8.6)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsFloat

from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_number
from .._support.resampling import bootstrap_bounds
from ..measure.effects import effect_p_value
from .recovery_results import fewest_that_keep

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Truncation:
    """Effect and displacement of an edit of its k first net planes, from `truncation`.

    Attributes:
        sizes: k of each column; with the last the edit is whole, unless fewer were asked for.
        layers: the edited ones.
        item_effects: effect of the whole edit on each contrast, in nats.
        item_values: effect of the edit of k planes.
        displacements: share of each layer's displacement that the k planes make: 1 − Σ|whole − of k planes|² /
            Σ|whole|², over the tokens of the contrasts but the first of each text, in the run under the whole edit.
        control_values: mean effect of each control edit, cut to k planes as well.
    """

    sizes: tuple[int, ...]
    layers: tuple[int, ...]
    item_effects: Float[Tensor, " contrasts"]
    item_values: Float[Tensor, "contrasts sizes"]
    displacements: Float[Tensor, "layers sizes"]
    control_values: Float[Tensor, "controls sizes"]

    @property
    def effect(self) -> float:
        """Δ: mean effect of the whole edit."""
        return self.item_effects.mean().item()

    @property
    def values(self) -> Float[Tensor, " sizes"]:
        """Mean effect of the edit of k planes."""
        return self.item_values.mean(0)

    def fewest(self, share: SupportsFloat = 0.8) -> int | None:
        """The smallest k whose edit has this share of the effect; None where none has."""
        return fewest_that_keep(as_number(share, "share"), self.sizes, self.values / self.effect)

    def to_frame(self) -> "pd.DataFrame":
        """One row per k.

        Columns: k, effect with low and high in nats, share (of the whole effect), displacement (share of the whole one,
        mean over layers); with controls control_low, control_high and p.
        """
        import pandas as pd

        low, high = bootstrap_bounds(self.item_values.numpy())
        columns: dict[str, Any] = {
            "k": self.sizes,
            "effect": self.values.numpy(),
            "low": low,
            "high": high,
            "share": (self.values / self.effect).numpy(),
            "displacement": self.displacements.mean(0).numpy(),
        }
        if len(self.control_values):
            columns["control_low"] = self.control_values.amin(0).numpy()
            columns["control_high"] = self.control_values.amax(0).numpy()
            columns["p"] = [
                effect_p_value(value, self.control_values[:, i]) for i, value in enumerate(self.values.tolist())
            ]
        return pd.DataFrame(columns)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Effect against k with intervals and the range of the controls, and the share of the displacement."""
        from ..plots.circuits import truncation_curve

        return truncation_curve(self.to_frame(), self.effect, controls=len(self.control_values), ax=ax)

    def __str__(self) -> str:
        fewest = self.fewest()
        told = (
            "no number of planes that was tried has 0.8 of it" if fewest is None else f"{fewest} planes have 0.8 of it"
        )
        shares = self.displacements.mean(0).tolist()
        rows = "; ".join(
            f"{k}: {value:+.3f} ({moved:.0%} of the displacement)"
            for k, value, moved in zip(self.sizes, self.values.tolist(), shares, strict=True)
        )
        return f"Truncation over {len(self.item_effects)} contrasts: effect {self.effect:+.4g} nats, {told}; {rows}"
