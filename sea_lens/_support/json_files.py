"""Results as JSON files."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .files import write_atomically


def plain(value: Any) -> Any:
    """A result as JSON content: tensors as lists, dataclasses as objects, keys, NaN and infinities as text."""
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def write_json(path: Path, content: Any, *, sort_keys: bool = True) -> None:
    """Write readable JSON, whole or not at all; raises as `write_atomically` does."""
    write_atomically(path, json.dumps(plain(content), indent=1, sort_keys=sort_keys, ensure_ascii=False) + "\n")
