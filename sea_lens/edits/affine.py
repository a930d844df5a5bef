"""Edits that are one affine map a unit: what a fold writes into weights, as an edit that can be measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float64
from torch import Tensor

from .activation import ActivationEdit, Arithmetic
from .where import Defaults

# How far a map may be from affine, of the largest of what it gives, in float64.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Affine(ActivationEdit):
    """x + α (M x + b − x), with a matrix and a vector for each unit of a layer.

    Attributes:
        site: where it acts.
        maps: M (units, d, d) and b (units, d) of each layer, float64.
        of_layers: number of layers of the model that it is for, None where unknown.
    """

    combines: ClassVar[tuple[str, ...]] = ("affine",)

    site: str
    maps: Mapping[int, tuple[Float64[Tensor, "units d d"], Float64[Tensor, "units d"]]]
    of_layers: int | None = None
    defaults: Defaults = field(default=Defaults(), kw_only=True, repr=False)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that there is a map for, ascending."""
        return tuple(sorted(self.maps))

    @property
    def n_layers(self) -> int | None:
        """Number of layers of the model that it is for, None where unknown."""
        return self.of_layers

    @property
    def shape(self) -> tuple[int, int]:
        """(units per layer, width of a unit)."""
        units, width = self.maps[self.layers[0]][1].shape
        return units, width

    def arithmetic(self, layer: int, combine: str) -> Arithmetic:
        """α of the way from x to M x + b."""
        matrix, offset = self.maps[layer]

        def edited(x: Tensor, strength: float | Tensor) -> Tensor:
            whole = torch.einsum("...ud,ued->...ue", x, matrix.to(x)) + offset.to(x)
            if isinstance(strength, Tensor):
                strength = strength.to(x)[..., None]
            return x + strength * (whole - x)

        return edited


def affine_map(
    arithmetic: Arithmetic, shape: tuple[int, int], strength: float
) -> tuple[Float64[Tensor, "units d d"], Float64[Tensor, "units d"]] | None:
    """M and b of an edit's arithmetic at a strength, read off at 0 and at unit vectors; None where it is not affine.

    Whether it is, is seen at vectors drawn at random, of several lengths.
    """
    units, width = shape
    basis = torch.eye(width, dtype=torch.float64)[:, None].expand(width, units, width).contiguous()
    offset = arithmetic(torch.zeros(1, units, width, dtype=torch.float64), strength)[0]
    columns = arithmetic(basis, strength) - offset
    matrix = rearrange(columns, "d_in units d_out -> units d_out d_in").contiguous()
    drawn = torch.randn(16, units, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = drawn * torch.logspace(-1, 2, 16, dtype=torch.float64)[:, None, None]
    found, expected = torch.einsum("nud,ued->nue", drawn, matrix) + offset, arithmetic(drawn, strength)
    exact = bool((found - expected).abs().max() <= _ROUNDING * expected.abs().max())
    return (matrix, offset) if exact else None
