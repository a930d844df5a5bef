"""What an edit does at every strength: the result (docs/method.md 6.15)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsFloat

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_number
from ..contributions.base import Contributions
from ..errors import InputError
from ..measure.effects import Effect, effect_p_value

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class Side(NamedTuple):
    """Side effects of an edit on texts, means over their tokens.

    Attributes:
        kl: KL(unedited ‖ edited), in nats.
        loss_change: change of the loss, in nats.
    """

    kl: float
    loss_change: float


@dataclass(frozen=True, eq=False)
class Dose:
    """An edit's effect, cost and contributions by strength.

    Attributes:
        strengths: that were tried.
        effects: at each.
        sides: side effects at each; empty where no texts were given.
        control_effects: mean effect of each control edit, in nats.
        control_kl: its divergence; NaN where no texts were given.
        contributions: at each strength; empty where none were asked for.
    """

    strengths: tuple[float, ...]
    effects: tuple[Effect, ...]
    sides: tuple[Side, ...]
    control_effects: Float[Tensor, "controls strengths"]
    control_kl: Float[Tensor, "controls strengths"]
    contributions: tuple[Contributions, ...]

    @property
    def worse(self) -> Float[Tensor, " strengths"]:
        """Share of the contrasts that the edit moves away from the target."""
        return torch.stack([(one.items < 0).double().mean() for one in self.effects])

    def best(self, kl: SupportsFloat) -> float:
        """The strength of largest effect among those that diverge by this much at most.

        Raises:
            InputError: there is none, or no divergence was measured.
        """
        budget = as_number(kl, "kl")
        if not self.sides:
            raise InputError("no divergence was measured: expected texts")
        within = [i for i, side in enumerate(self.sides) if side.kl <= budget]
        if not within:
            raise InputError(
                f"kl {budget:g}: the least of these strengths diverges by {min(s.kl for s in self.sides):.3g}"
            )
        return self.strengths[max(within, key=lambda i: self.effects[i].effect)]

    def to_frame(self) -> "pd.DataFrame":
        """One row per strength.

        Columns: strength, effect with low and high in nats, worse (share of the contrasts), mass on the two answers;
        with texts kl and loss_change in nats per token; with controls control_low, control_high and p.
        """
        import pandas as pd

        columns: dict[str, Any] = {
            "strength": self.strengths,
            "effect": [one.effect for one in self.effects],
            "low": [one.interval.low for one in self.effects],
            "high": [one.interval.high for one in self.effects],
            "worse": self.worse.numpy(),
            "mass": [one.after_mass.mean().item() for one in self.effects],
        }
        if self.sides:
            columns["kl"] = [side.kl for side in self.sides]
            columns["loss_change"] = [side.loss_change for side in self.sides]
        if len(self.control_effects):
            columns["control_low"] = self.control_effects.amin(0).numpy()
            columns["control_high"] = self.control_effects.amax(0).numpy()
            columns["p"] = [
                effect_p_value(one.effect, self.control_effects[:, i]) for i, one in enumerate(self.effects)
            ]
        return pd.DataFrame(columns)

    def contributions_frame(self) -> "pd.DataFrame":
        """The tables of contributions below each other, with a column strength.

        Raises:
            InputError: none were measured.
        """
        import pandas as pd

        if not self.contributions:
            raise InputError("no contributions were measured: expected contributions=")
        pairs = zip(self.strengths, self.contributions, strict=True)
        return pd.concat([found.to_frame().assign(strength=strength) for strength, found in pairs], ignore_index=True)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """The effect against its cost where texts were given, and against the strength otherwise; grey: controls."""
        from ..plots.edits import dose_curve

        costs = [side.kl for side in self.sides] if self.sides else list(self.strengths)
        beside = self.control_kl if self.sides else torch.tensor(self.strengths).expand_as(self.control_effects)
        return dose_curve(
            self.to_frame(), costs, beside.numpy(), self.control_effects.numpy(), is_divergence=bool(self.sides), ax=ax
        )

    def __str__(self) -> str:
        rows = [
            f"strength {strength:g}: {found.interval}, {share:.0%} worse" + (f", kl {side.kl:.3g}" if side else "")
            for strength, found, share, side in zip(
                self.strengths,
                self.effects,
                self.worse.tolist(),
                self.sides or (None,) * len(self.strengths),
                strict=True,
            )
        ]
        return f"Dose over {len(self.effects[0].items)} contrasts, effects in nats; " + "; ".join(rows)
