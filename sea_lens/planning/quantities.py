"""Sizes of memory as people write them, and how much of it this machine has."""

import os
import re

import torch

from ..errors import InputError

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", 1):
    _UNITS |= {f"{_letter}B": 1000**_power, f"{_letter}IB": 1024**_power, _letter: 1000**_power}


def read_bytes(text: str | int | float) -> int:
    """Bytes of a size such as "24GB", "80 GiB" or a number of bytes.

    Raises:
        InputError: it is none, or not above 0.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([A-Za-z]*)\s*", text if isinstance(text, str) else f"{text:f}")
    unit = None if found is None else _UNITS.get(found[2].upper())
    if found is None or unit is None or not float(found[1]) * unit >= 1:
        raise InputError(f"memory {text!r}: expected a size such as 24GB, 80GiB or 500MB")
    return int(float(found[1]) * unit)


def shown(number: int) -> str:
    """Bytes with three digits that count and a unit of thousands."""
    size, units = float(number), ["B", "kB", "MB", "GB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop(0)
    digits = 0 if size >= 99.5 or units[0] == "B" else 1 if size >= 9.95 else 2
    return f"{size:,.{digits}f} {units[0]}"


def memory_of(device: str) -> int:
    """Bytes that a device has: the first GPU's, or this machine's.

    Raises:
        InputError: there is no such device here.
    """
    if device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.startswith("cuda") and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
    raise InputError(f"device {device!r} is not here, so its memory is not known: expected memory='80GB' or the like")
