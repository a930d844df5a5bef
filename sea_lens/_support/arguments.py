"""Users' arguments as plain Python values, or one clear error: numpy's and torch's scalars are welcome everywhere."""

import math
import operator
import reprlib
from collections.abc import Sequence
from typing import Any, SupportsFloat, TypeAlias

import torch
from torch import Tensor

from ..errors import InputError

Scalar: TypeAlias = SupportsFloat | Tensor

# What torch and numpy hold in an index, a size or a seed.
LARGEST = 2**63 - 1


def as_integer(value: Any, name: str, *, least: int | None = None) -> int:
    """A whole number, at least `least`, of 64 bits.

    Raises:
        InputError: it is not; names the argument.
    """
    try:
        number = None if _is_truth_value(value) else operator.index(value)
    except Exception:  # whatever a stranger's object does when it is asked
        number = None
    if number is None:
        raise InputError(f"{name} {given(value)}: expected a whole number")
    if least is not None and number < least:
        raise InputError(f"{name} {given(number)}: expected at least {least}")
    if abs(number) > LARGEST:
        raise InputError(f"{name} {given(number)}: expected a whole number of at most {LARGEST}")
    return number


def as_number(value: Any, name: str, *, least: float | None = None) -> float:
    """A finite number, and not below `least` where that is given.

    Raises:
        InputError: it is not; names the argument.
    """
    try:
        number = None if _is_truth_value(value) or isinstance(value, (str, bytes, bytearray)) else float(value)
    except OverflowError:
        raise InputError(f"{name} {given(value)}: expected a finite number, and this is too large for one") from None
    except Exception:  # as above
        number = None
    if number is None:
        raise InputError(f"{name} {given(value)}: expected a number")
    if not math.isfinite(number):
        raise InputError(f"{name} {number}: expected a finite number")
    if least is not None and number < least:
        raise InputError(f"{name} {number:g}: expected at least {least:g}")
    return number


def as_strength(value: Any) -> float | Tensor:
    """A strength: a finite number, or a tensor of them that has axes or requires a gradient.

    Raises:
        InputError: it is neither, or holds values that are not finite.
    """
    if not isinstance(value, Tensor) or (value.ndim == 0 and not value.requires_grad):
        return as_number(value, "strength")
    if value.is_meta or value.layout != torch.strided or value.is_complex() or value.dtype == torch.bool:
        raise InputError(f"strength of shape {tuple(value.shape)} and {value.dtype}: expected real numbers in memory")
    if not torch.isfinite(value).all():
        raise InputError(f"strength of shape {tuple(value.shape)} holds NaN or infinite values")
    return value


def as_truth_value(value: Any, name: str) -> bool:
    """True or False, numpy's and torch's own among them.

    Raises:
        InputError: it is neither; names the argument.
    """
    # One with axes holds several.
    if not _is_truth_value(value) or getattr(value, "ndim", 0):
        raise InputError(f"{name} {given(value)}: expected True or False")
    return bool(value)


def _is_truth_value(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def as_several(value: Any, name: str, one: type | tuple[type, ...]) -> list[Any]:
    """The values of a list; or the value alone, where it is `one` and no list.

    Raises:
        InputError: it is neither, or a list without a value or with one twice; names the argument.
    """
    if isinstance(value, one):
        return [value]
    try:
        found = list(value)
    except Exception:  # as above
        raise InputError(f"{name} {given(value)}: expected one, or a list of them") from None
    if not found:
        raise InputError(f"{name} {given(value)}: expected at least one")
    if twice := [one for place, one in enumerate(found) if one in found[:place]]:
        raise InputError(f"{name} {given(twice[0])} is given twice: expected each once")
    return found


def given(value: Any) -> str:
    """A value as errors show it, however long it is."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**40:
        return f"of {value.bit_length()} bits"
    try:
        return _REPR.repr(value)
    except Exception:  # as above
        return f"of type {type(value).__name__}"


def counted(n: int, name: str) -> str:
    """How many there are, in words: "1 plane", "2 planes"."""
    return f"{n} {name}" if n == 1 else f"{n} {name}s"


def listed(names: Sequence[str]) -> str:
    """Some names, the first few of them if they are many."""
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


class _Bounded(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 200


_REPR = _Bounded()
