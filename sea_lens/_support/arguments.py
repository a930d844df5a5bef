"""Users' arguments as plain Python values, or one clear error: numpy's and torch's scalars are welcome everywhere."""

import math
import operator
from typing import Any, SupportsFloat, TypeAlias

import torch
from torch import Tensor

from ..errors import InputError

Scalar: TypeAlias = SupportsFloat | Tensor


def as_integer(value: Any, name: str, *, least: int | None = None) -> int:
    """A whole number, at least `least`.

    Raises:
        InputError: it is not; names the argument.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} {value!r}: expected a whole number") from None
    if least is not None and number < least:
        raise InputError(f"{name} {number}: expected at least {least}")
    return number


def as_number(value: Any, name: str) -> float:
    """A finite number.

    Raises:
        InputError: it is not; names the argument.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} {value!r}: expected a number") from None
    if not math.isfinite(number):
        raise InputError(f"{name} {number}: expected a finite number")
    return number


def as_strength(value: Any) -> float | Tensor:
    """A strength: a finite number, or a tensor of them that has axes or requires a gradient.

    Raises:
        InputError: it is neither, or holds values that are not finite.
    """
    if not isinstance(value, Tensor) or (value.ndim == 0 and not value.requires_grad):
        return as_number(value, "strength")
    if not torch.isfinite(value).all():
        raise InputError(f"strength of shape {tuple(value.shape)} holds NaN or infinite values")
    return value
