"""What every contribution analysis returns: labelled values, what they sum to, and how far that is from the effect."""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from .._support.arguments import as_integer, counted, given
from .._support.resampling import bootstrap_bounds
from .._support.significance import corrected_p_values, rank_p_values
from .._support.statistics import Interval, bootstrap
from ..errors import InputError
from ..measure.effects import effect_p_value

FEWEST_SPLIT = 20

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
        control_effects: mean effect of each control edit, None where there was none.
        sampling_errors: standard error of each mean that is due to the orders drawn, where Shapley values are sampled;
            None elsewhere. It is beside the standard error over contrasts, which takes the orders as given.
    """

    method: str
    item_values: Float[Tensor, "contrasts *parts"]
    item_effects: Float[Tensor, " contrasts"]
    details: dict[str, Any] = field(default_factory=dict, kw_only=True)
    control_values: Float[Tensor, "draws *parts"] | None = field(default=None, kw_only=True)
    control_effects: Float[Tensor, " draws"] | None = field(default=None, kw_only=True)
    sampling_errors: Float[Tensor, "*parts"] | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def labels(self) -> Sequence[Hashable]:
        """The parts' names, in the order of `values.flatten()`."""

    def named(self, label: Any) -> str:
        """A label in words: a head and its layer as "1.0"."""
        return ".".join(map(str, label)) if isinstance(label, tuple) else str(label)

    @property
    def unit(self) -> str:
        """Unit of values and effect."""
        return "nats"

    @property
    def n_controls(self) -> int:
        """How many control edits stand beside it."""
        beside = self.control_effects if self.control_values is None else self.control_values
        return 0 if beside is None else len(beside)

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
        return (self._item_totals - self.item_effects).square().mean().sqrt().item()

    @property
    def _item_totals(self) -> Float[Tensor, " contrasts"]:
        return self.item_values.flatten(1).sum(1)

    def interval(self, label: Hashable, *, held_out: bool = False) -> Interval:
        """Interval of one part's contribution over contrasts; paired, as each item is a difference.

        The source is docs/method.md 6.7.

        Args:
            label: of the part.
            held_out: over the contrasts that `top(held_out=True)` does not choose by. Of a part that was chosen by its
                size on the same contrasts an interval covers too seldom.

        Raises:
            InputError: there is no such part, or there are fewer than 20 contrasts to choose and report on.
        """
        places = {one: place for place, one in enumerate(self.labels)}
        if not isinstance(label, Hashable) or label not in places:
            raise InputError(f"no contribution is called {given(label)}: they are {given(list(places))}")
        if held_out:
            self._check_split()
        items = rearrange(self.item_values, "contrasts ... -> contrasts (...)")[:, places[label]]
        items = items[1::2] if held_out else items
        return bootstrap(items.numpy(), kind="number")

    @property
    def beyond_controls(self) -> Bool[Tensor, "*parts"] | None:
        """Which values lie outside the range of the control edits, in the shape of `values`; None without controls."""
        if self.control_values is None:
            return None
        low, high = self.control_values.amin(0), self.control_values.amax(0)
        return (self.values < low) | (self.values > high)

    def p_values(self, *, corrected: bool = False) -> Float[Tensor, "*parts"]:
        """Two-sided p-value of each value among those of the control edits (docs/method.md 6.8).

        (1 + controls at least as far from the middle) / (1 + controls): with 19 controls no p-value is below 0.05.

        Args:
            corrected: for all parts at once, by the maximum statistic.

        Raises:
            InputError: there are no control edits.
        """
        if self.control_values is None:
            raise InputError("p-values are ranks among control edits: expected control=, such as sl.permuted gives")
        values, controls = self.values.flatten().numpy(), self.control_values.flatten(1).numpy()
        found = (corrected_p_values if corrected else rank_p_values)(values, controls)
        return torch.from_numpy(found).reshape(self.values.shape)

    @property
    def effect_p_value(self) -> float:
        """Two-sided p-value of the whole effect among those of the control edits; NaN where there are none."""
        if self.control_effects is None:
            return math.nan
        return effect_p_value(self.effect, self.control_effects)

    @property
    def effect_interval(self) -> Interval:
        """Interval of the whole effect over contrasts."""
        return bootstrap(self.item_effects.numpy(), kind="number")

    @property
    def can_split(self) -> bool:
        """Whether there are contrasts enough to choose parts on one half and report them on the other."""
        return len(self.item_values) >= FEWEST_SPLIT

    def top(self, k: int = 5, *, held_out: bool = False) -> list[tuple[Any, float]]:
        """The k parts of largest absolute contribution, as (label, value).

        Args:
            k: how many.
            held_out: choose them on every other contrast, beginning with the first, and give their values on the
                contrasts between. Chosen and measured on the same contrasts, the largest are too large by chance.

        Raises:
            InputError: fewer than 20 contrasts to choose and report on.
        """
        k, labels = as_integer(k, "k", least=0), list(self.labels)
        chosen_by, reported = self.values.flatten(), self.values.flatten()
        if held_out:
            self._check_split()
            chosen_by, reported = self._halves()
        order = chosen_by.abs().argsort(descending=True, stable=True)[:k]
        return [(labels[i], reported[i].item()) for i in order.tolist()]

    def _check_split(self) -> None:
        if not self.can_split:
            raise InputError(
                f"{len(self.item_values)} contrasts: expected at least {FEWEST_SPLIT} to choose parts on one half and "
                f"report them on the other"
            )

    def _halves(self) -> tuple[Float[Tensor, " parts"], Float[Tensor, " parts"]]:
        """Mean of each part over every other contrast, from the first and from the second on."""
        items = self.item_values.flatten(1) if self.item_values.ndim > 1 else self.item_values
        return items[::2].mean(0), items[1::2].mean(0)

    def columns(self) -> dict[str, Any]:
        """Value, standard error, interval, and what stands beside them, one entry a part; see `to_frame`."""
        low, high = bootstrap_bounds(rearrange(self.item_values, "contrasts ... -> contrasts (...)").numpy())
        columns = {
            "value": self.values.flatten().numpy(),
            "standard_error": self.standard_errors.flatten().numpy(),
            "low": low,
            "high": high,
        }
        if self.sampling_errors is not None:
            columns["sampling_error"] = self.sampling_errors.flatten().numpy()
        if self.can_split:
            columns["value_chosen_by"], columns["value_held_out"] = (half.numpy() for half in self._halves())
        if self.control_values is not None:
            columns["control_low"] = self.control_values.amin(0).flatten().numpy()
            columns["control_high"] = self.control_values.amax(0).flatten().numpy()
            columns["p"] = self.p_values().flatten().numpy()
            columns["p_corrected"] = self.p_values(corrected=True).flatten().numpy()
        return columns

    @abstractmethod
    def to_frame(self) -> "pd.DataFrame":
        """One row per part: its label and its numbers.

        The numbers are value, its standard_error over contrasts, and the interval low and high; for sampled Shapley
        values sampling_error; from 20 contrasts on value_chosen_by and value_held_out, the value on every other
        contrast and on those between (choose by the first, report the second); and where there is a control its lowest
        and highest value, control_low and control_high, and the p-values p and p_corrected.
        """

    @abstractmethod
    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """A figure of the values that stands by itself."""

    def __str__(self) -> str:
        split = self.can_split
        top = ", ".join(f"{self.named(label)} {value:+.4g}" for label, value in self.top(held_out=split))
        beside = (
            ""
            if self.control_effects is None
            else f" (p {self.effect_p_value:.2g} of {counted(self.n_controls, 'control')})"
        )
        chosen = "largest on half of the contrasts, with their values on the other half: " if split else ""
        return (
            f"{type(self).__name__}({self.method}): effect {self.effect:+.4g} {self.unit}{beside}, sum "
            f"{self.total:+.4g} (closure error {self.closure_error:.1e}); {chosen}{top}"
        )


def standard_errors(items: Float[Tensor, "contrasts *parts"]) -> Float[Tensor, "*parts"]:
    """Standard error of the mean over contrasts; NaN with a single one."""
    n = len(items)
    return items.std(0) / math.sqrt(n) if n > 1 else items.mean(0) * math.nan
