"""What of an effect is left with a part of the model held as it was: the result (docs/method.md 9.8)."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from .base import Contributions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FREEZES = {
    "patterns": "attention patterns",
    "values": "attention values",
    "attention": "what heads write",
    "mlps": "what MLPs write",
    "attention_and_mlps": "what heads and MLPs write",
    "block_norms": "the scales of the blocks' norms",
    "final_norm": "the final norm's scale",
}


@dataclass(frozen=True, eq=False)
class Frozen(Contributions):
    """What of the effect is lost with a part of the model held at its unedited values, in nats (docs/method.md 9.8).

    Attributes:
        held: one label for each entry of `values`: "patterns" (every head's attention pattern), "values" (every head's
            values), "attention" (what every head writes), "mlps", "attention_and_mlps" (what is left then goes from
            the edits to the logits directly), "block_norms" (what the norms inside the blocks divide by), "final_norm"
            (what the final norm divides by).
        Others as in `Contributions`; the method is "frozen". Values need not sum to the effect: ways overlap.
    """

    item_values: Float[Tensor, "contrasts held"]
    held: tuple[str, ...] = field(kw_only=True)

    @property
    def labels(self) -> tuple[str, ...]:
        """What is held."""
        return self.held

    @property
    def left(self) -> Float[Tensor, " held"]:
        """The effect that is left with each part held."""
        return self.effect - self.values

    def to_frame(self) -> "pd.DataFrame":
        """One row per part: held, left (the effect with it held) and the numbers of what is lost."""
        import pandas as pd

        return pd.DataFrame({"held": self.held, "left": self.left.numpy(), **self.columns()})

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """What is lost with each part held, as bars, with intervals and the range of the controls."""
        from ..plots.circuits import frozen_bars

        names = [FREEZES[one] for one in self.held]
        return frozen_bars(self.to_frame(), names, self.effect, controls=self.n_controls, ax=ax)
