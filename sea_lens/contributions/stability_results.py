"""How far an effect and its contributions depend on the demonstrations: the result (docs/method.md 6.12)."""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .._support.statistics import Interval
from ..spectral.edit import SpectralEdit
from .base import Contributions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Stability:
    """An effect and its contributions, with the variance that comes of the demonstrations.

    Attributes:
        edit: fitted from all demonstrations.
        scheme: "bootstrap" or "jackknife".
        found: the contributions under this edit; None where the effect alone was asked for.
        item_effects: effect of the edit on each contrast, in the unit of the contributions.
        fit_effects: mean effect of each resampled fit.
        fit_values: contributions under each resampled fit; empty where the effect alone was asked for.
        level: of the intervals.
    """

    edit: SpectralEdit
    scheme: str
    found: Contributions | None
    item_effects: Float[Tensor, " contrasts"]
    fit_effects: Float[Tensor, " fits"]
    fit_values: Float[Tensor, "fits parts"]
    level: float = field(default=0.95, kw_only=True)

    @property
    def effect(self) -> Interval:
        """The effect with an interval over contrasts and demonstrations alike."""
        items = self.item_effects[:, None]
        (low,), (high,) = self._ends(items, self.fit_effects[:, None])
        return Interval(items.mean().item(), low, high, self.level, "contrasts and fits", len(items))

    @property
    def effect_errors(self) -> tuple[float, float]:
        """Standard error of the effect over contrasts and over fits."""
        ours = self.item_effects[:, None]
        return _over_items(ours)[0].item(), self._over_fits(self.fit_effects[:, None])[0].item()

    @property
    def labels(self) -> list[Hashable]:
        """Names of the parts, in the order of `fit_values`."""
        return [] if self.found is None else list(self.found.labels)

    @property
    def fit_errors(self) -> Float[Tensor, " parts"]:
        """Standard error of each contribution that comes of the demonstrations."""
        return self._over_fits(self.fit_values)

    @property
    def spearman(self) -> Float[np.ndarray, " fits"]:
        """Rank correlation of each fit's contributions with those of the whole; NaN with a single part."""
        from scipy.stats import spearmanr

        return self._agreement(lambda a, b: _first(spearmanr(a, b)))

    @property
    def kendall(self) -> Float[np.ndarray, " fits"]:
        """Kendall's τ of each fit's contributions with those of the whole; NaN with a single part."""
        from scipy.stats import kendalltau

        return self._agreement(lambda a, b: _first(kendalltau(a, b)))

    def to_frame(self) -> "pd.DataFrame":
        """One row per part, below the whole effect.

        Columns: part, value, low and high (over contrasts and fits), contrast_error and fit_error (standard errors),
        same_sign (share of the fits in which it has the value's sign).
        """
        import pandas as pd

        items, fits, names = self.item_effects[:, None], self.fit_effects[:, None], ["effect"]
        if self.found is not None:
            parts = self.found.item_values.flatten(1)
            items, fits = torch.cat([items, parts], 1), torch.cat([fits, self.fit_values], 1)
            names += [self.found.named(label) for label in self.labels]
        low, high = self._ends(items, fits)
        return pd.DataFrame(
            {
                "part": names,
                "value": items.mean(0).numpy(),
                "low": low,
                "high": high,
                "contrast_error": _over_items(items).numpy(),
                "fit_error": self._over_fits(fits).numpy(),
                "same_sign": (fits.sign() == items.mean(0).sign()).double().mean(0).numpy(),
            }
        )

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """The effect and the parts of largest contribution, with intervals, and a tick for each fit."""
        from ..plots.contributions import resampled_values

        frame, fits = self.to_frame(), torch.cat([self.fit_effects[:, None], self.fit_values], 1).numpy()
        unit = "nats" if self.found is None else self.found.unit
        return resampled_values(frame, fits, f"{len(fits)} fits on resampled demonstrations", unit, ax=ax)

    def __str__(self) -> str:
        over_items, over_fits = self.effect_errors
        text = (
            f"effect {self.effect} over contrasts and demonstrations (standard error {over_items:.2g} over contrasts, "
            f"{over_fits:.2g} over {len(self.fit_effects)} fits, {self.scheme})"
        )
        if self.fit_values.shape[1] < 2:
            return text
        rho, tau = (known.mean() if len(known := x[~np.isnan(x)]) else math.nan for x in (self.spearman, self.kendall))
        return f"{text}; ranking of {self.fit_values.shape[1]} parts: Spearman {rho:.2f}, Kendall {tau:.2f} on average"

    def _over_fits(self, values: Float[Tensor, "fits columns"]) -> Float[Tensor, " columns"]:
        n = len(values)
        if self.scheme == "bootstrap":
            return values.std(0)
        # Fits that share all but one n-th of the demonstrations differ little: the jackknife's factor undoes that.
        return values.std(0, correction=0) * math.sqrt(n - 1)

    def _ends(
        self, items: Float[Tensor, "contrasts columns"], fits: Float[Tensor, "resamples columns"]
    ) -> tuple[list[float], list[float]]:
        """Interval of each column: the two variances added, with Satterthwaite's degrees of freedom."""
        from scipy.special import stdtrit

        own, of_fits = (x.square().numpy() for x in (_over_items(items), self._over_fits(fits)))
        total = own + of_fits
        with np.errstate(invalid="ignore", divide="ignore"):
            freedom = total**2 / (own**2 / (len(items) - 1) + of_fits**2 / (len(fits) - 1))
            half = stdtrit(freedom, (1 + self.level) / 2) * np.sqrt(total)
        half = np.where(total > 0, half, math.nan)
        mean = items.mean(0).numpy()
        return (mean - half).tolist(), (mean + half).tolist()

    def _agreement(self, of: Callable[[Any, Any], float]) -> Float[np.ndarray, " fits"]:
        if self.found is None or self.fit_values.shape[1] < 2:
            return np.full(len(self.fit_values), math.nan)
        whole = self.found.values.flatten().numpy()
        return np.array(
            [of(whole, row) if np.ptp(row) > 0 < np.ptp(whole) else math.nan for row in self.fit_values.numpy()]
        )


def _over_items(items: Float[Tensor, "contrasts columns"]) -> Float[Tensor, " columns"]:
    n = len(items)
    return items.std(0) / math.sqrt(n) if n > 1 else items.mean(0) * math.nan


def _first(result: Any) -> float:
    """The coefficient of one of scipy's tests of association."""
    return float(result[0])
