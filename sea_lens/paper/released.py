"""The edit as the released code computes it, in the two respects that no option of an edit has (docs/method.md 11).

They are here to be measured, not to be used: with the first a token's edit depends on the tokens behind it.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._support.saturation import saturate, widened
from ..edits.activation import ActivationEdit, Arithmetic
from ..edits.where import Defaults, Where
from ..errors import InputError
from ..models.hooks import HookFunction
from ..models.lens import Lens
from ..models.token_positions import Positions, acting
from ..spectral.edit import SpectralEdit


def whole_row(tokens: Int[Tensor, " pos"], prompt: int) -> Bool[Tensor, " pos"]:
    """Positions: every token. Unlike "all", a function has rows read whole, never behind a cache."""
    return torch.ones_like(tokens, dtype=torch.bool)


@dataclass(frozen=True, eq=False)
class NormOverTokens(ActivationEdit):
    """A spectral edit whose result is rescaled over the tokens of its row, each coordinate by itself.

        edited[c, t] = y[c, t] ‖x[c, ·]‖ / ‖y[c, ·]‖

    A spectral edit's norms are over coordinates, for each token. Padding does not count, so that the result does not
    depend on what else is in the batch. A coordinate that is 0 in all of y stays as it is (the released code has NaN).

    Attributes:
        fitted: the edit; not of single heads.
    """

    combines: ClassVar[tuple[str, ...]] = ("norm",)

    fitted: SpectralEdit
    site: str
    defaults: Defaults = field(default=Defaults(positions=whole_row), kw_only=True, repr=False)

    @classmethod
    def of(cls, edit: SpectralEdit) -> "NormOverTokens":
        """A fitted edit, rescaled so.

        Raises:
            InputError: it edits heads, whose activations have one axis more.
        """
        if edit.at.per_head:
            raise InputError(f"the released code edits no heads, and the edit acts at {edit.site!r}")
        return cls(edit, edit.site)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.fitted.layers

    @property
    def n_layers(self) -> int | None:
        return self.fitted.n_layers

    @property
    def shape(self) -> tuple[int, int]:
        return self.fitted.shape

    def choose_positions(self, positions: Positions) -> Positions:
        """Always whole rows."""
        return whole_row

    def arithmetic(self, layer: int, combine: str) -> Arithmetic:
        """Half of y, from which the norm over tokens is still to come."""
        return self.fitted.arithmetic(layer, "average")

    def functions(self, model: object, where: Where) -> list[tuple[str, HookFunction]]:
        lens = Lens.of(model)

        def at(layer: int, strength: float | Tensor) -> HookFunction:
            arithmetic = self.arithmetic(layer, where.combine)

            def edited(x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
                real = acting(lens, whole_row, x).over(x)
                wide = torch.where(real, widened(x), 0.0)
                half = torch.where(real, self.at.from_units(arithmetic(self.at.to_units(wide), 1.0)), 0.0)
                before, after = (torch.linalg.vector_norm(one, dim=1, keepdim=True) for one in (wide, half))
                rescaled = torch.where(after > 0, half * (before / torch.where(after > 0, after, 1.0)), wide)
                moved = wide + self.per_token(strength) * (rescaled - wide)
                return torch.where(real, saturate(moved, x.dtype).to(x.dtype), x)

            return edited

        return [(self.at.point(lens, layer), at(layer, strength)) for layer, strength in where.strengths.items()]

    @staticmethod
    def per_token(strength: float | Tensor) -> float | Tensor:
        """A strength that broadcasts against (batch, pos, d)."""
        return strength[..., None] if isinstance(strength, Tensor) else strength


def _identity(x: Tensor) -> Tensor:
    return x


def _minus_two_log(y: Tensor) -> Tensor:
    return -2.0 * y.log()


def without_feature(edit: SpectralEdit) -> SpectralEdit:
    """A spectral edit that forgets φ: the projections act on x, and φ⁻¹ on what they give.

    The inverse of the squared exponential is the released code's, −2 ln y. What the projections give is first clamped
    into the range of φ, as in any edit here: the released code has NaN there.
    """
    feature = edit.feature
    inverse = _minus_two_log if feature.name == "squared_exponential" else feature.inverse
    forgetful = replace(
        feature, name=f"{feature.name}, thrown away", forward=_identity, inverse=inverse, carry_sign=False
    )
    return replace(edit, feature=forgetful, _cast={})
