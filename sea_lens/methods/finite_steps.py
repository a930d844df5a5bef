"""x + α c, and thin linear maps, such that every finite activation is sent to a finite one (docs/method.md 3.6)."""

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from .._support.saturation import saturate
from ..spectral.arithmetic import power_of_two_scale


def step(
    x: Float[Tensor, "*batch units d"], change: Float[Tensor, "*batch units d"], strength: float | int | Tensor
) -> Float[Tensor, "*batch units d"]:
    """The sum x + strength · change, where the strength is as in `ActivationEdit.arithmetic`."""
    if isinstance(strength, Tensor):
        strength = saturate(strength.to(x))[..., None]
    else:
        # A larger one would be infinite in the dtype of x, and NaN where nothing changes.
        largest = torch.finfo(x.dtype).max
        strength = max(-largest, min(strength, largest))
    return x + strength * saturate(change)


def mapped(
    x: Float[Tensor, "*batch units d"], right: Float[Tensor, "units d k"], left: Float[Tensor, "units d k"]
) -> Float[Tensor, "*batch units d"]:
    """The product left rightᵀ x as two thin products, at a scale at which nothing overflows."""
    scale = power_of_two_scale(x)
    measured = einsum(x / scale, right.to(x), "... units d, units d k -> ... units k")
    return saturate(einsum(measured, left.to(x), "... units k, units d k -> ... units d") * scale)
