"""What a fit needs of demonstrations, in two forms: activations while they are few, sums beyond (docs/method.md 2.2).

N activations that are d wide take fewer bytes than two d × d sums while N < d, can be kept as the model gave them, and
serve every feature map. `Activations` holds them, in memory or in files; `Sums` holds Σ φ(h) φ(h±)ᵀ and Σ φ(h), in
float64. Both give one layer at a time, so that what lies in files is never in memory whole.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from .features import FeatureMap
from .layer_statistics import LayerActivations, LayerStatistics, LayerSums, Three

# Demonstrations of which float64 copies are made at a time.
ROWS = 512


class Part(ABC):
    """Activations before φ of some demonstrations, wherever they are."""

    @property
    @abstractmethod
    def n(self) -> int:
        """Number of demonstrations."""

    @property
    @abstractmethod
    def layout(self) -> tuple[int, int, int]:
        """(layers, units, d)."""

    @abstractmethod
    def check_form(self) -> None:
        """Refuse tensors that do not belong together.

        Raises:
            ValueError: saying which.
        """

    @abstractmethod
    def layer(self, index: int) -> Three:
        """Those of one layer, each (n, units, d)."""


@dataclass(frozen=True, eq=False)
class InMemory(Part):
    """Activations in memory, in whatever dtype they were read.

    Attributes:
        values: each (layers, n, units, d).
    """

    values: Three

    @property
    def n(self) -> int:
        return self.values.neutral.shape[1]

    @property
    def layout(self) -> tuple[int, int, int]:
        layers, _, units, d = self.values.neutral.shape
        return layers, units, d

    def check_form(self) -> None:
        shapes = {tuple(x.shape) for x in self.values}
        if len(shapes) > 1 or not all(x.is_floating_point() for x in self.values):
            raise ValueError(f"three activations of shapes {sorted(shapes)} or of dtypes that are no numbers")

    def layer(self, index: int) -> Three:
        return self.values.each(lambda x: x[index])

    def to(self, device: torch.device | str) -> "InMemory":
        return InMemory(self.values.each(lambda x: x.to(device)))


class Statistics(ABC):
    """The statistics of several layers.

    Attributes:
        n: number of demonstrations.
        layout: (layers, units, d).
    """

    n: int
    layout: tuple[int, int, int]

    @abstractmethod
    def check_form(self) -> None:
        """Refuse tensors that do not belong together, without looking at their numbers.

        Raises:
            ValueError: saying which.
        """

    @abstractmethod
    def layer(self, index: int, feature: FeatureMap) -> LayerStatistics:
        """Those of one layer, given φ."""

    @abstractmethod
    def sums(self, feature: FeatureMap) -> "Sums":
        """The same as sums."""

    @abstractmethod
    def to(self, device: torch.device | str) -> "Statistics":
        """The same on another device; what lies in files stays there."""


@dataclass(frozen=True, eq=False)
class Activations(Statistics):
    """Activations of few demonstrations, or of any number in files.

    Attributes:
        layout: (layers, units, d).
        parts: one after the other.
        order: the place of each row among the demonstrations, where that is another.
    """

    layout: tuple[int, int, int]
    parts: tuple[Part, ...] = ()
    order: Int[Tensor, " n"] | None = None

    @property
    def n(self) -> int:  # type: ignore[override]
        return sum(part.n for part in self.parts)

    def check_form(self) -> None:
        for part in self.parts:
            if part.layout != self.layout:
                raise ValueError(f"activations of {part.layout} (layers, units, width), expected {self.layout}")
            part.check_form()
        if self.order is not None and not torch.equal(self.order.sort().values, torch.arange(self.n)):
            raise ValueError(f"its order is no order of {self.n} demonstrations")

    def raw(self, index: int) -> Three:
        """Activations of one layer before φ, each (n, units, d), in the order of the demonstrations."""
        found = list(zip(*(part.layer(index) for part in self.parts), strict=True))
        place = None if self.order is None else self.order.argsort()
        sides = []
        while found:
            # One side after the other, so that only one is there twice.
            whole = torch.cat(found.pop(0))
            sides.append(whole if place is None else whole[place.to(whole.device)])
        return Three(*sides)

    def in_one_part(self) -> "Activations":
        """The same in memory, in the order of the demonstrations."""
        layers = [self.raw(index) for index in range(self.layout[0])]
        whole = Three(*(torch.stack(sides) for sides in zip(*layers, strict=True)))
        return Activations(self.layout, (InMemory(whole),))

    def layer(self, index: int, feature: FeatureMap) -> LayerStatistics:
        _, units, d = self.layout
        if self.n < d:
            return LayerActivations(self.raw(index), feature)
        total = Sums.empty((1, units, d))
        for part in self.parts:
            total.add(part.layer(index).each(lambda x: x[None]), feature)
        return total.layer(0, feature)

    def sums(self, feature: FeatureMap) -> "Sums":
        layers, units, d = self.layout
        device = next((part.values.neutral.device for part in self.parts if isinstance(part, InMemory)), "cpu")
        total = Sums.empty((layers, units, d), device)
        for index in range(layers):
            for part in self.parts:
                total.add(part.layer(index).each(lambda x: x[None]), feature, slice(index, index + 1))
        return replace(total, n=self.n)

    def to(self, device: torch.device | str) -> "Activations":
        parts = tuple(part.to(device) if isinstance(part, InMemory) else part for part in self.parts)
        return replace(self, parts=parts)


@dataclass(eq=False)
class Sums(Statistics):
    """Sums over demonstrations, float64.

    Attributes:
        n: number of demonstrations.
        outer: Σ φ(h) φ(h⁺)ᵀ and Σ φ(h) φ(h⁻)ᵀ of each layer.
        single: Σ φ(h), Σ φ(h⁺) and Σ φ(h⁻), each (layers, units, d).
    """

    n: int
    outer: tuple[Float[Tensor, "layers units d d"], Float[Tensor, "layers units d d"]]
    single: Three

    def check_form(self) -> None:
        if self.single.neutral.ndim != 3:
            raise ValueError(f"a sum has shape {tuple(self.single.neutral.shape)}, expected (layers, units, width)")
        layers, units, d = self.layout
        for sums, wanted in ((self.outer, (layers, units, d, d)), (self.single, (layers, units, d))):
            for one in sums:
                if tuple(one.shape) != wanted or one.dtype != torch.float64:
                    raise ValueError(f"a sum has shape {tuple(one.shape)} and dtype {one.dtype}, expected {wanted}")

    @staticmethod
    def empty(layout: tuple[int, int, int], device: torch.device | str = "cpu") -> "Sums":
        """Sums of nothing yet."""
        layers, units, d = layout

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(layers, units, *shape, dtype=torch.float64, device=device)

        return Sums(0, (zeros(d, d), zeros(d, d)), Three(zeros(d), zeros(d), zeros(d)))

    @property
    def layout(self) -> tuple[int, int, int]:  # type: ignore[override]
        layers, units, d = self.single.neutral.shape
        return layers, units, d

    def add(self, values: Three, feature: FeatureMap, layers: slice = slice(None)) -> None:
        """Add activations before φ, each (layers, n, units, d), in place; some layers alone do not count for `n`."""
        for place, index in enumerate(range(*layers.indices(self.layout[0]))):
            # One layer after the other, so that no copy of all of them in float64 stands beside them.
            for start in range(0, values.neutral.shape[1], ROWS):
                self._add_to(index, values.each(lambda x, at=place, i=start: x[at, i : i + ROWS]), feature)
        self.n += values.neutral.shape[1]

    def _add_to(self, index: int, values: Three, feature: FeatureMap) -> None:
        """Add activations of one layer before φ, each (n, units, d)."""
        neutral, *others = mapped = values.each(lambda x: feature.forward(x.to(self.single.neutral)))
        rows = rearrange(neutral, "n units d -> units d n")
        for outer, other in zip(self.outer, others, strict=True):
            outer[index].baddbmm_(rows, rearrange(other, "n units d -> units n d"))
        for single, one in zip(self.single, mapped, strict=True):
            single[index] += reduce(one, "n units d -> units d", "sum")

    def layer(self, index: int, feature: FeatureMap) -> LayerSums:
        return LayerSums(self.n, (self.outer[0][index], self.outer[1][index]), self.single.each(lambda x: x[index]))

    def sums(self, feature: FeatureMap) -> "Sums":
        return self

    def to(self, device: torch.device | str) -> "Sums":
        first, second = (x.to(device) for x in self.outer)
        return Sums(self.n, (first, second), self.single.each(lambda x: x.to(device)))

    def __add__(self, other: "Sums") -> "Sums":
        first, second = (a + b.to(a) for a, b in zip(self.outer, other.outer, strict=True))
        single = Three(*(a + b.to(a) for a, b in zip(self.single, other.single, strict=True)))
        return Sums(self.n + other.n, (first, second), single)


def merged(one: Statistics, other: Statistics, feature: FeatureMap) -> Statistics:
    """The statistics of both: activations while these are fewer than they are wide, or lie in files."""
    if isinstance(one, Activations) and isinstance(other, Activations):
        parts = (*one.parts, *other.parts)
        held = all(isinstance(part, InMemory) for part in parts)
        order = None
        if one.order is not None or other.order is not None:
            first, second = (torch.arange(x.n) if x.order is None else x.order for x in (one, other))
            order = torch.cat([first, second + one.n])
        whole = Activations(one.layout, parts, order)
        if whole.n < one.layout[2] or not held:
            return whole
    return one.sums(feature) + other.sums(feature)


def stacked(rows: Sequence[Float[Tensor, "n layers units d"]]) -> Three:
    """Activations as they are kept: layers first, so that those of one layer lie together."""
    # A copy, whatever the strides, since what was given may be changed by whoever gave it.
    return Three(
        *(
            rearrange(x, "n layers units d -> layers n units d").clone(memory_format=torch.contiguous_format)
            for x in rows
        )
    )
