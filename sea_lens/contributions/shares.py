"""Shares of an effect, and whether there is an effect to have shares of (docs/method.md 8.6 and 9.6)."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.statistics import Interval, bootstrap

# Nats up to which an effect is rounding, of which there are no shares.
ROUNDING = 1e-5


class SharesOfEffect:
    """What results have that tell how much of an effect is there with few parts.

    Attributes:
        item_effects: effect of the whole edit on each contrast that is reported, in nats.
    """

    item_effects: Float[Tensor, " contrasts"]

    @property
    def effect(self) -> float:
        """Δ: mean effect of the whole edit on the contrasts that are reported."""
        return self.item_effects.mean().item()

    @property
    def effect_interval(self) -> Interval:
        """Its interval over these contrasts."""
        return bootstrap(self.item_effects.numpy(), kind="number")

    @property
    def tells_shares(self) -> bool:
        """Whether shares of the effect mean anything: it is more than rounding, and its interval does not contain 0.

        A single contrast has no interval; a share is one of the effect on this contrast then.
        """
        interval = self.effect_interval
        return abs(interval.mean) > ROUNDING and not interval.low <= 0 <= interval.high

    @property
    def untold(self) -> str:
        """Why no share is told, in words; empty where shares are told."""
        if self.tells_shares:
            return ""
        if abs(self.effect) <= ROUNDING:
            return "no share of it is told, since there is no effect but rounding"
        return "no share of it is told, since its interval contains 0"

    def shares(self, values: Float[Tensor, "*sizes"]) -> Float[Tensor, "*sizes"]:
        """Values in nats over the effect; NaN where the effect is nothing but rounding."""
        return values / self.effect if abs(self.effect) > ROUNDING else torch.full_like(values, math.nan)


def fewest_that_keep(share: float, sizes: Sequence[int], kept: Float[Tensor, " sizes"]) -> int | None:
    """The first size that keeps this share; None where none does."""
    return next((k for k, value in zip(sizes, kept.tolist(), strict=True) if value >= share), None)
