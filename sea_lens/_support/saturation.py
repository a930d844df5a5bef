"""Arithmetic that stays finite."""

import torch
from jaxtyping import Float
from torch import Tensor


def saturate(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Infinities from overflow become the largest finite number of the dtype, with their sign (docs/method.md 3.6)."""
    largest = torch.finfo(x.dtype).max
    return x.clamp(-largest, largest)
