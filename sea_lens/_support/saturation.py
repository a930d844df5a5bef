"""What overflows stays finite (docs/method.md 3.6)."""

import torch
from jaxtyping import Float
from torch import Tensor


def saturate(x: Float[Tensor, "*shape"], dtype: torch.dtype | None = None) -> Float[Tensor, "*shape"]:
    """A new tensor in which infinities are the largest finite number of a dtype, by default that of x; NaN stays."""
    largest = torch.finfo(dtype or x.dtype).max
    return x.clamp(-largest, largest)
