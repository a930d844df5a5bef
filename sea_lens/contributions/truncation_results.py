"""How few directions carry an edit: the result (docs/method.md 8.6)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsFloat

from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_number, counted
from .._support.resampling import bootstrap_bounds
from ..measure.effects import effect_p_value
from .shares import SharesOfEffect, fewest_that_keep

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Truncation(SharesOfEffect):
    """Effect and displacement of an edit of its k first net planes, from `truncation`.

    Attributes:
        sizes: k of each column; with the last the edit is whole, unless fewer were asked for.
        layers: the edited ones.
        item_effects: effect of the whole edit on each contrast, in nats.
        item_values: effect of the edit of k planes.
        displacements: share of each layer's displacement that the k planes make: 1 − Σ|whole − of k planes|² /
            Σ|whole|², over the tokens of the contrasts but the first of each text, in the run under the whole edit; NaN
            of a layer that the edit does not move.
        control_values: mean effect of each control edit, cut to k planes as well.
    """

    sizes: tuple[int, ...]
    layers: tuple[int, ...]
    item_effects: Float[Tensor, " contrasts"]
    item_values: Float[Tensor, "contrasts sizes"]
    displacements: Float[Tensor, "layers sizes"]
    control_values: Float[Tensor, "controls sizes"]

    @property
    def values(self) -> Float[Tensor, " sizes"]:
        """Mean effect of the edit of k planes."""
        return self.item_values.mean(0)

    @property
    def displacement(self) -> Float[Tensor, " sizes"]:
        """Share of the displacement, mean over the layers that the edit moves; NaN where it moves none."""
        return self.displacements.nanmean(0)

    def fewest(self, share: SupportsFloat = 0.8) -> int | None:
        """The smallest k whose edit has this share of the effect; None where none has.

        It means nothing where the effect cannot be told from 0 (`tells_shares`), and is None where that is rounding.
        """
        return fewest_that_keep(as_number(share, "share"), self.sizes, self.shares(self.values))

    def to_frame(self) -> "pd.DataFrame":
        """One row per k.

        Columns: k, effect with low and high in nats, share (of the whole effect), displacement (share of the whole one,
        mean over the layers that are moved); with controls control_low, control_high and p.
        """
        import pandas as pd

        low, high = bootstrap_bounds(self.item_values.numpy())
        columns: dict[str, Any] = {
            "k": self.sizes,
            "effect": self.values.numpy(),
            "low": low,
            "high": high,
            "share": self.shares(self.values).numpy(),
            "displacement": self.displacement.numpy(),
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
        has = "has" if fewest in (None, 1) else "have"
        told = f"{'no number of planes that was tried' if fewest is None else counted(fewest, 'plane')} {has}"
        rows = "; ".join(
            f"{k}: {value:+.3f} ({displaced(moved)})"
            for k, value, moved in zip(self.sizes, self.values.tolist(), self.displacement.tolist(), strict=True)
        )
        return (
            f"Truncation over {counted(len(self.item_effects), 'contrast')}: effect {self.effect_interval} nats, "
            f"{self.untold or f'{told} 0.8 of it'}; {rows}"
        )


def displaced(share: float) -> str:
    """A share of the displacement in words."""
    return "nothing is moved" if math.isnan(share) else f"{share:.0%} of the displacement"
