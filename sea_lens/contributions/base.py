"""What every contribution analysis returns: labelled values, what they sum to, and how far that is from the effect."""

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


@dataclass(frozen=True, eq=False)
class Contributions(ABC):
    """What each part contributes to an edit's effect, on every contrast.

    Attributes:
        method: how it was measured.
        item_values: contribution of each part to each contrast's effect.
        item_effects: effect on each contrast.
        details: what the method reports of itself (quadrature nodes, permutations, correlation).
        control_values: mean contributions under each control edit (`control=`), None where there was none.
        sampling_errors: standard error of each mean that is due to the orders drawn, where Shapley values are sampled;
            None elsewhere. It is beside the standard error over contrasts, which takes the orders as given.
    """

    method: str
    item_values: Float[Tensor, "contrasts *parts"]
    item_effects: Float[Tensor, " contrasts"]
    details: dict[str, Any] = field(default_factory=dict, kw_only=True)
    control_values: Float[Tensor, "draws *parts"] | None = field(default=None, kw_only=True)
    sampling_errors: Float[Tensor, "*parts"] | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def labels(self) -> Sequence[Hashable]:
        """The parts' names, in the order of `values.flatten()`."""

    @property
    def unit(self) -> str:
        """Unit of values and effect."""
        return "nats"

    @property
    def n_controls(self) -> int:
        """How many control edits stand beside it."""
        return 0 if self.control_values is None else len(self.control_values)

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
        return standard_errors(self.item_values)

    @property
    def total(self) -> float:
        """Sum of the values; what it should be depends on the method."""
        return self.values.sum().item()

    @property
    def closure_error(self) -> float:
        """|total − Δ| (docs/method.md 7.1)."""
        return abs(self.total - self.effect)

    @property
    def item_closure_error(self) -> float:
        """Root mean square over contrasts of how far the sum of their values is from their effect.

        Misses of single contrasts can cancel in `closure_error`, and cannot here.
        """
        misses = self.item_values.flatten(1).sum(1) - self.item_effects
        return misses.square().mean().sqrt().item()

    def interval(self, label: Hashable) -> Interval:
        """Bootstrap interval of one part's contribution over contrasts; paired, as each item is a difference.

        The source is docs/method.md 6.7.

        Raises:
            ValueError: there is no such part.
        """
        place = list(self.labels).index(label)
        return bootstrap(rearrange(self.item_values, "contrasts ... -> contrasts (...)")[:, place].numpy(), kind="number")

    def top(self, k: int = 5) -> list[tuple[Any, float]]:
        """The k parts of largest absolute contribution, as (label, value)."""
        k = as_integer(k, "k", least=0)
        flat, labels = self.values.flatten(), list(self.labels)
        order = flat.abs().argsort(descending=True, stable=True)[:k]
        return [(labels[i], flat[i].item()) for i in order.tolist()]

    def columns(self) -> dict[str, Any]:
        """Value, standard error, bootstrap interval and range of the control, one entry a part."""
        low, high = bootstrap_bounds(rearrange(self.item_values, "contrasts ... -> contrasts (...)").numpy())
        columns = {
            "value": self.values.flatten().numpy(),
            "standard_error": self.standard_errors.flatten().numpy(),
            "low": low,
            "high": high,
        }
        if self.sampling_errors is not None:
            columns["sampling_error"] = self.sampling_errors.flatten().numpy()
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


def standard_errors(items: Float[Tensor, "contrasts *parts"]) -> Float[Tensor, "*parts"]:
    """Standard error of the mean over contrasts; NaN with a single one."""
    n = len(items)
    return items.std(0) / math.sqrt(n) if n > 1 else items.mean(0) * math.nan
