"""Results as JSON files."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import FileError
from .files import write_atomically
from .regular_files import read_regular
from .seals import NO_SEAL, has_seal, sealed
from .strict_json import parse_json

# Stands beside a seal, so that a file that has lost the seal is told from one that never had any.
FORM = 2


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
    write_atomically(path, _text(content, sort_keys))


def _text(content: Any, sort_keys: bool) -> bytes:
    text = json.dumps(plain(content), indent=1, sort_keys=sort_keys, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "replace")


def write_sealed_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write readable JSON with a seal in it, "sha256"; raises as `write_atomically` does."""
    write_atomically(path, sealed(_text({**content, "form": FORM, "sha256": NO_SEAL}, False)))


def read_sealed_json(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The object that `write_sealed_json` wrote, whose "sea_lens" says what it is.

    Version 0.1.0 wrote none of the two, "sha256" and "form"; a file that has one must have the other.

    Raises:
        FileError: no such file, no JSON, another file, or one that was changed since it was written.
    """
    raw = read_regular(path)
    try:
        content = parse_json(raw.decode("utf-8"))
    except ValueError as error:
        raise FileError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("sea_lens") != kind:
        raise FileError(f"{path} is no {kind} that sea_lens wrote")
    seal, form = content.pop("sha256", None), content.pop("form", None)
    if (seal, form) == (None, None):
        return content
    if form not in (FORM, None):
        raise FileError(f"{path} is of form {form!r}, which this version of sea_lens does not know")
    if form is None or not isinstance(seal, str) or not has_seal(raw, seal):
        raise FileError(f"{path} is damaged: its content is not what its sha256 says")
    return content
