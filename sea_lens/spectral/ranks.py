"""How many directions a fit keeps and drops, as one value: a share of the energy, or ranks (docs/method.md 2.4)."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat, SupportsIndex, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._support.arguments import as_integer, as_number
from ..errors import InputError
from .singular import Spectrum

# A pair may come as any sequence; its length is checked with the values.
Energy: TypeAlias = SupportsFloat | Sequence[SupportsFloat]
Rank: TypeAlias = SupportsIndex | Sequence[SupportsIndex] | Mapping[Any, Sequence[SupportsIndex]]

KEEP, DROP = 0, 1
# How far a share of the energy may be off where it is computed again.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Size(ABC):
    """How many directions of each layer's two spectra are taken.

    Attributes:
        power: the power of the singular values that counts as energy.
    """

    power: float

    @staticmethod
    def of(energy: Energy = 0.998, rank: Rank | None = None, spectrum_power: SupportsFloat = 2) -> "Size":
        """The size that the arguments of `fit` ask for.

        Raises:
            InputError: energy outside (0, 1], a rank below 0, a power that is not positive, or neither one number nor a
                pair.
        """
        power = as_number(spectrum_power, "spectrum_power")
        if not power > 0:
            raise InputError(f"spectrum_power {spectrum_power} is not positive")
        positive, negative = _pair(energy)
        shares = as_number(positive, "energy"), as_number(negative, "energy")
        if rank is None:
            if not all(0 < share <= 1 for share in shares):
                raise InputError(f"energy {energy} is outside (0, 1]")
            return EnergyShare(power, shares)
        if isinstance(rank, Mapping):
            return RankOfEach(power, {key: _ranks(pair) for key, pair in rank.items()})
        return SameRank(power, _ranks(rank))

    @staticmethod
    def recorded(options: Mapping[str, Any]) -> "Size":
        """The size that the options of a fitted edit record; errors as in `of`, or KeyError."""
        power, rank = options["spectrum_power"], options.get("rank")
        if rank is None:
            return Size.of(options["energy"], None, power)
        if isinstance(rank, Mapping):
            rank = {_recorded_key(name): pair for name, pair in rank.items()}
        return Size.of(rank=rank, spectrum_power=power)

    @property
    @abstractmethod
    def record(self) -> dict[str, Any]:
        """The option of `fit` that it was, as JSON values."""

    @property
    def needs_all_values(self) -> bool:
        """Whether the leading singular values and the sum of all squares do not tell the ranks."""
        return False

    def check_width(self, width: int) -> None:  # noqa: B027
        """Refuse ranks above the width of the activations.

        Raises:
            InputError: one is.
        """

    def check_keys(self, keys: Sequence[Hashable], what: str) -> None:  # noqa: B027
        """Refuse ranks that are not given for each of these units; `what` says in the error what units they are.

        Raises:
            InputError: they are not.
        """

    def check_ranks(
        self, spectrum: Spectrum, ranks: Int[Tensor, " units"], side: int, keys: Sequence[Hashable]
    ) -> None:
        """Refuse ranks that this size does not give.

        Raises:
            ValueError: naming the ranks.
        """
        wanted, found = self.ranks(spectrum, side, keys), ranks.cpu()
        # Lower where the numerical rank is, beyond which there is no energy.
        numerical = (spectrum.values > 0).sum(-1)
        whole = (Spectrum.whole(spectrum.values).energy >= (1 - _ROUNDING) * spectrum.energy).cpu()
        if not ((found == wanted) | (whole & (found == numerical.cpu()) & (found < wanted))).all():
            raise ValueError(f"it has ranks {ranks.tolist()} where {self.record} gives {wanted.tolist()}")

    def below(self, ranks: Int[Tensor, " units"], side: int, keys: Sequence[Hashable]) -> list[str]:
        """Units of a layer that got fewer directions than were asked for, in words."""
        asked = self.ranks(Spectrum.whole(torch.ones(len(ranks), 1, dtype=torch.float64)), side, keys)
        of = ("k+", "k-")[side]
        return [
            f"{key} {of} {got} of {wanted}"
            for key, got, wanted in zip(keys, ranks.tolist(), asked.tolist(), strict=True)
            if got < wanted
        ]

    @abstractmethod
    def ranks(self, spectrum: Spectrum, side: int, keys: Sequence[Hashable]) -> Int[Tensor, " units"]:
        """The rank of each unit of a layer; more than the spectrum has values where these do not reach.

        Args:
            spectrum: of its cross-covariance with one of the two sides.
            side: `KEEP` or `DROP`.
            keys: what the units are called.
        """


@dataclass(frozen=True)
class EnergyShare(Size):
    """The least ranks whose singular values reach a share of the energy.

    energy(k) = Σ_{j≤k} σⱼᵖ / Σ σⱼᵖ with p the power (docs/method.md 2.4).

    Attributes:
        shares: (K⁺, K⁻).
    """

    shares: tuple[float, float]

    @property
    def record(self) -> dict[str, Any]:
        return {"energy": list(self.shares)}

    def ranks(self, spectrum: Spectrum, side: int, keys: Sequence[Hashable]) -> Int[Tensor, " units"]:
        reached = self._cumulative(spectrum) >= self.shares[side] * self._total(spectrum)
        first = reached.to(torch.int64).argmax(-1) + 1
        return torch.where(reached[:, -1], first, reached.shape[-1] + 1).cpu()

    def below(self, ranks: Int[Tensor, " units"], side: int, keys: Sequence[Hashable]) -> list[str]:
        # Where nothing is dropped there is no energy to reach.
        return []

    @property
    def needs_all_values(self) -> bool:
        # The whole energy is the sum of all squares alone, and where nearly all of it counts its rounding does too.
        return self.power != 2 or max(self.shares) > 1 - _ROUNDING

    def _cumulative(self, spectrum: Spectrum) -> Float[Tensor, "units m"]:
        """Energy of the first directions, over that of the first one."""
        return spectrum.values.div(spectrum.values[:, :1]).pow(self.power).cumsum(-1)

    def _total(self, spectrum: Spectrum) -> Float[Tensor, "units 1"]:
        """Energy of all directions, likewise."""
        cumulative = self._cumulative(spectrum)[:, -1:]
        # Where all values are there their own sum counts, which the last of them reaches to the bit.
        return cumulative if self.power != 2 else torch.maximum(cumulative, spectrum.energy[:, None])

    def check_ranks(
        self, spectrum: Spectrum, ranks: Int[Tensor, " units"], side: int, keys: Sequence[Hashable]
    ) -> None:
        shares = torch.nn.functional.pad(self._cumulative(spectrum) / self._total(spectrum), (1, 0)).cpu()
        place = ranks.cpu().to(torch.int64).clamp(min=1)[:, None]
        # With room for the rounding of another processor.
        reached = shares.gather(1, place) >= self.shares[side] - _ROUNDING
        needed = shares.gather(1, place - 1) < self.shares[side] + _ROUNDING
        right = (reached & needed & (ranks.cpu()[:, None] > 0))[:, 0]
        # A spectrum of zeros has no energy to reach: nothing is dropped, and an edit that keeps nothing is none.
        is_zero = (spectrum.values[:, 0] == 0).cpu()
        if not torch.where(is_zero, (ranks.cpu() == 0) & (side == DROP), right).all():
            raise ValueError(f"it has ranks {ranks.tolist()}, which are not the least that {self.record} needs")


@dataclass(frozen=True)
class SameRank(Size):
    """The same ranks (k⁺, k⁻) everywhere."""

    pair: tuple[int, int]

    @property
    def record(self) -> dict[str, Any]:
        return {"rank": list(self.pair)}

    def check_width(self, width: int) -> None:
        _check_width(self.pair, width)

    def ranks(self, spectrum: Spectrum, side: int, keys: Sequence[Hashable]) -> Int[Tensor, " units"]:
        return torch.tensor([self.pair[side]] * len(spectrum.values))


@dataclass(frozen=True)
class RankOfEach(Size):
    """Ranks (k⁺, k⁻) of each unit, by what it is called: as `SpectralEdit.ranks` gives them."""

    pairs: Mapping[Any, tuple[int, int]]

    @property
    def record(self) -> dict[str, Any]:
        named = {".".join(map(str, key)) if isinstance(key, tuple) else str(key): key for key in self.pairs}
        return {"rank": {name: list(self.pairs[key]) for name, key in named.items()}}

    def check_width(self, width: int) -> None:
        for pair in self.pairs.values():
            _check_width(pair, width)

    def check_keys(self, keys: Sequence[Hashable], what: str) -> None:
        if set(self.pairs) != set(keys):
            raise InputError(f"ranks are given for {list(self.pairs)}, expected a pair for each {what}")

    def ranks(self, spectrum: Spectrum, side: int, keys: Sequence[Hashable]) -> Int[Tensor, " units"]:
        return torch.tensor([self.pairs[key][side] for key in keys])


def _recorded_key(name: str) -> Any:
    """A layer, or (layer, head), as `RankOfEach.record` writes it."""
    first, *rest = (int(part) for part in name.split("."))
    return (first, *rest) if rest else first


def _check_width(pair: tuple[int, int], width: int) -> None:
    if max(pair) > width:
        asked = pair[0] if pair[0] == pair[1] else pair
        raise InputError(f"rank {asked} is above the width of the activations, {width}")


def _ranks(value: Any) -> tuple[int, int]:
    positive, negative = _pair(value)
    return as_integer(positive, "rank", least=0), as_integer(negative, "rank", least=0)


def _pair(value: Any) -> tuple[Any, Any]:
    """(positive, negative) from one number or two."""
    if isinstance(value, (tuple, list)) or getattr(value, "ndim", 0) == 1:
        if len(value) != 2:
            raise InputError(f"expected one number or a pair (positive, negative), got {value}")
        return value[0], value[1]
    return value, value
