"""Numbers with room: computed in float32 at least, and what overflows stays finite (docs/method.md 3.6)."""

import torch
from jaxtyping import Float
from torch import Tensor

_WIDE = frozenset({torch.float32, torch.float64})


def widened(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same in float32 where it is in less, else x itself."""
    return x if x.dtype in _WIDE else x.to(torch.float32)


def saturate(x: Float[Tensor, "*shape"], dtype: torch.dtype | None = None) -> Float[Tensor, "*shape"]:
    """A new tensor in which infinities are the largest finite number of a dtype, by default that of x; NaN stays."""
    largest = torch.finfo(dtype or x.dtype).max
    return x.clamp(-largest, largest)
