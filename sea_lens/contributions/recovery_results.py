"""How few heads and MLPs carry an edit's effect together: the result (docs/method.md 9.6)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsFloat

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer, as_number, counted
from .._support.resampling import bootstrap_bounds
from .nodes import Node
from .shares import SharesOfEffect, fewest_that_keep

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Recovery(SharesOfEffect):
    """The effect with the k first nodes alone, and without them, in nats.

    Attributes:
        nodes: in the order in which they are taken: (layer, head), or (layer, "mlp").
        ranked_by: how they were ranked.
        direct: whether the edit itself is kept beside them.
        sizes: k of each column.
        item_effects: effect of the whole edit on each contrast that is reported.
        item_values: what of it the k nodes keep: the unedited run with their values from the edited run; with `direct`
            the edited run with all others held at their values from the unedited run.
        item_losses: what is lost when the edited run gets their values of the unedited run.
        random_values, random_losses: the means for random orders of the nodes.
        control_values, control_losses: the means for the orders that control edits give, of this edit.
        held_out: whether the contrasts that are reported are others than those that nodes were ranked on.
    """

    nodes: tuple[Node, ...]
    ranked_by: str
    direct: bool
    sizes: tuple[int, ...]
    item_effects: Float[Tensor, " contrasts"]
    item_values: Float[Tensor, "contrasts sizes"]
    item_losses: Float[Tensor, "contrasts sizes"]
    random_values: Float[Tensor, "draws sizes"]
    random_losses: Float[Tensor, "draws sizes"]
    control_values: Float[Tensor, "controls sizes"]
    control_losses: Float[Tensor, "controls sizes"]
    held_out: bool

    @property
    def values(self) -> Float[Tensor, " sizes"]:
        """Mean effect that is kept with the k first nodes alone."""
        return self.item_values.mean(0)

    @property
    def losses(self) -> Float[Tensor, " sizes"]:
        """Mean effect that is lost without the k first nodes."""
        return self.item_losses.mean(0)

    @property
    def auc(self) -> float:
        """Area under the kept share of the effect against the share of nodes: near 1 where few suffice.

        It is that from the smallest to the largest number of nodes that was taken: of the whole curve only where
        `sizes` contain 0 and all nodes (`spans`). NaN where there is no effect but rounding.
        """
        return self._area(self.values)

    @property
    def random_aucs(self) -> Float[Tensor, " draws"]:
        """The same area of each random order."""
        return torch.tensor([self._area(one) for one in self.random_values], dtype=torch.float64)

    @property
    def control_aucs(self) -> Float[Tensor, " controls"]:
        """The same area of the order of each control edit."""
        return torch.tensor([self._area(one) for one in self.control_values], dtype=torch.float64)

    def _area(self, values: Float[Tensor, " sizes"]) -> float:
        shares = np.asarray(self.sizes) / len(self.nodes)
        return float(np.trapezoid(self.shares(values).numpy(), shares))

    @property
    def ceiling(self) -> float:
        """Share of the effect that is kept with as many nodes as were taken at most.

        Where `sizes` contain all of them what is missing from 1 goes past heads and MLPs: from the edit to the logits
        directly, or against what is kept; and with `direct` it is 1. With fewer it is no ceiling but theirs. NaN where
        there is no effect but rounding.
        """
        return self.shares(self.values[-1]).item()

    @property
    def spans(self) -> bool:
        """Whether sizes go from no nodes to all of them."""
        return self.sizes[0] == 0 and self.sizes[-1] == len(self.nodes)

    def fewest(self, share: SupportsFloat = 0.8) -> int | None:
        """The smallest k that keeps this share of the effect on the contrasts that are reported; None where none does.

        It means nothing where the effect on them cannot be told from 0 (`tells_shares`), and is None where that is
        rounding.
        """
        return fewest_that_keep(as_number(share, "share"), self.sizes, self.shares(self.values))

    def others_fewest(self, share: SupportsFloat = 0.8) -> dict[str, list[int | None]]:
        """The same of each random order ("random") and of the order of each control edit ("control")."""
        share = as_number(share, "share")
        drawn = {"random": self.random_values, "control": self.control_values}
        return {
            name: [fewest_that_keep(share, self.sizes, self.shares(one)) for one in values]
            for name, values in drawn.items()
        }

    def top(self, k: int = 5) -> list[Node]:
        """The k nodes that are taken first."""
        return list(self.nodes[: as_integer(k, "k", least=0)])

    def to_frame(self) -> "pd.DataFrame":
        """One row per k.

        Columns: k, node (the one that is added last), kept with low and high, kept_share, lost with lost_low and
        lost_high, lost_share; lowest and highest kept of random sets (random_low, random_high) and of the controls'
        (control_low, control_high).
        """
        import pandas as pd

        columns = {
            "k": self.sizes,
            "node": [".".join(map(str, self.nodes[k - 1])) if k else "" for k in self.sizes],
            "kept": self.values.numpy(),
        }
        columns["low"], columns["high"] = bootstrap_bounds(self.item_values.numpy())
        columns["kept_share"] = self.shares(self.values).numpy()
        columns["lost"] = self.losses.numpy()
        columns["lost_low"], columns["lost_high"] = bootstrap_bounds(self.item_losses.numpy())
        columns["lost_share"] = self.shares(self.losses).numpy()
        for name, drawn in (("random", self.random_values), ("control", self.control_values)):
            if len(drawn):
                columns[f"{name}_low"], columns[f"{name}_high"] = drawn.amin(0).numpy(), drawn.amax(0).numpy()
        return pd.DataFrame(columns)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Kept and lost effect against k, beside random sets and those of the controls."""
        from ..plots.circuits import recovery_curve

        beside = {"direct": self.direct, "controls": len(self.control_values)}
        return recovery_curve(self.to_frame(), self.effect, self.ranked_by, **beside, ax=ax)

    def __str__(self) -> str:
        which = "nodes were not ranked on" if self.held_out else "nodes were ranked on too"
        first = ", ".join(".".join(map(str, node)) for node in self.top())
        return (
            f"Recovery(ranked by {self.ranked_by}): effect {self.effect_interval} nats on "
            f"{counted(len(self.item_effects), 'contrast')} that {which}, {self.untold or self._told()}; first {first}"
        )

    def _told(self) -> str:
        """How few keep most of the effect, and the areas, in words."""
        fewest = self.fewest()
        beside_them = "the edit itself and " if self.direct else ""
        told = (
            f"{beside_them}{fewest} of {len(self.nodes)} nodes keep 0.8 of it"
            if fewest is not None
            else (f"no number of {len(self.nodes)} nodes keeps 0.8 of it ({self.ceiling:.2f} with {self.sizes[-1]})")
        )
        if not self.spans:
            return told
        beside = "".join(
            f"; {len(areas)} {name} {areas.min():.2f} to {areas.max():.2f}"
            for name, areas in (("random orders", self.random_aucs), ("controls' orders", self.control_aucs))
            if len(areas)
        )
        return f"{told}; area {self.auc:.2f}{beside}"
