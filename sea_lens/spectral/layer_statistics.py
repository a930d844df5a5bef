"""What a fit needs of one layer, from activations or from sums: means, and Ω as a linear map (docs/method.md 2.1)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from .features import FeatureMap
from .products import Matrix, Product, Rows, ThinProduct

# Rows of which float64 copies are added up at a time.
_ROWS = 32


class Three(NamedTuple):
    """Something of the neutral, the positive and the negative texts each."""

    neutral: Tensor
    positive: Tensor
    negative: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> "Three":
        """What a change makes of each of them."""
        return Three(*map(change, self))


class LayerStatistics(ABC):
    """The statistics of one layer.

    Attributes:
        n: number of demonstrations.
    """

    n: int

    @cached_property
    @abstractmethod
    def means(self) -> Three:
        """Sample means of φ(h), φ(h⁺) and φ(h⁻), each (units, d), float64."""

    @abstractmethod
    def omega(self, side: int, *, centre: bool) -> Float[Tensor, "units d d"]:
        """Ω⁺ (side 0) or Ω⁻ (1), rows neutral; with `centre`, about the sample means."""

    @abstractmethod
    def product(self, side: int, *, centre: bool) -> Product:
        """The same as a linear map whose singular vectors can be found."""

    @abstractmethod
    def to(self, device: torch.device | str) -> "LayerStatistics":
        """The same on another device."""


@dataclass(frozen=True, eq=False)
class LayerSums(LayerStatistics):
    """Sums of one layer.

    Attributes:
        outer: Σ φ(h) φ(h⁺)ᵀ and Σ φ(h) φ(h⁻)ᵀ.
        single: Σ φ(h), Σ φ(h⁺) and Σ φ(h⁻).
    """

    n: int
    outer: tuple[Float[Tensor, "units d d"], Float[Tensor, "units d d"]]
    single: Three

    @cached_property
    def means(self) -> Three:
        return self.single.each(lambda x: x / self.n)

    def omega(self, side: int, *, centre: bool) -> Float[Tensor, "units d d"]:
        found = self.outer[side] / self.n
        if not centre:
            return found
        means = self.means
        return found - einsum(means[0], means[1 + side], "units i, units j -> units i j")

    def product(self, side: int, *, centre: bool) -> Product:
        return Matrix.of(self.omega(side, centre=centre))

    def to(self, device: torch.device | str) -> "LayerSums":
        first, second = (x.to(device) for x in self.outer)
        return LayerSums(self.n, (first, second), self.single.each(lambda x: x.to(device)))


@dataclass(frozen=True, eq=False)
class LayerActivations(LayerStatistics):
    """Activations of one layer; they are mapped, in float64, when they are needed.

    Attributes:
        raw: activations before φ, each (n, units, d).
        feature: the map φ.
    """

    raw: Three
    feature: FeatureMap

    @property
    def n(self) -> int:  # type: ignore[override]
        return len(self.raw.neutral)

    @cached_property
    def means(self) -> Three:
        return self.raw.each(self._mean)

    def omega(self, side: int, *, centre: bool) -> Float[Tensor, "units d d"]:
        h, other = self._mapped(0, centre), self._mapped(1 + side, centre)
        return einsum(h, other, "n units i, n units j -> units i j") / self.n

    def product(self, side: int, *, centre: bool) -> Product:
        # What both sides share is computed once.
        neutral = self._centred_neutral if centre else self._neutral
        return ThinProduct(neutral, Rows.of(self._mapped(1 + side, centre)))

    def to(self, device: torch.device | str) -> "LayerActivations":
        return LayerActivations(self.raw.each(lambda x: x.to(device)), self.feature)

    @cached_property
    def _neutral(self) -> Rows:
        return Rows.of(self._mapped(0))

    @cached_property
    def _centred_neutral(self) -> Rows:
        return Rows.of(self._mapped(0, centre=True))

    def _mean(self, raw: Float[Tensor, "n units d"]) -> Float[Tensor, "units d"]:
        # Few rows at a time, since a copy in float64 of all costs more time than adding it up.
        parts = (self.feature.forward(rows.double()) for rows in raw.split(_ROWS))
        return torch.stack([reduce(part, "n units d -> units d", "sum") for part in parts]).sum(0) / self.n

    def _mapped(self, which: int, centre: bool = False) -> Float[Tensor, "n units d"]:
        values = self.feature.forward(self.raw[which].double())
        return values - self.means[which] if centre else values
