"""Some numbers of an embedding, by which one model is told from another of the same sizes (docs/method.md 12.2).

The embedding is what TransformerLens, transformers and vLLM all have at hand, whole on the first device.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_ROWS, _NUMBERS = 64, 24
# Rounding to 16 bits moves a number by 0.4 % of itself; what training further does to an embedding may be as little.
_TOLERANCE = 0.01


def embedding_numbers(weight: Any) -> list[float] | None:
    """A few numbers of the first rows of an embedding, relative to the largest of them; None where there are none.

    They do not depend on the dtype but for rounding, on a factor that a backend takes into the embedding, or on whether
    its rows have mean 0.

    Args:
        weight: (tokens, d_model).
    """
    if not isinstance(weight, Tensor) or weight.is_meta or weight.ndim != 2 or not weight.is_floating_point():
        return None
    rows = weight[:_ROWS].detach().to("cpu", torch.float32)
    centred = rows - rows.mean(1, keepdim=True)
    places = torch.arange(_NUMBERS)
    picked = centred[places * len(rows) // _NUMBERS, (places * 7919 + 13) % rows.shape[1]]
    largest = picked.abs().amax()
    if not bool(largest > 0) or not bool(largest.isfinite()):
        return None
    return [round(number, 5) for number in (picked / largest).tolist()]


def are_of_one(first: Any, second: Any) -> bool:
    """Whether two models may have the same embedding; True where one of them is not known.

    Raises:
        ValueError, TypeError: they are no lists of numbers.
    """
    if first is None or second is None:
        return True
    return len(first) == len(second) and max(abs(a - b) for a, b in zip(first, second, strict=True)) <= _TOLERANCE


def shown(numbers: Sequence[float] | None) -> str:
    """The first few of the numbers, for a message."""
    return "unknown" if not numbers else f"{', '.join(f'{number:.3f}' for number in numbers[:4])}, …"
