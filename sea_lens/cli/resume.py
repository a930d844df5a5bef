"""Results of analyses as JSON content that gives the same bits back, so that `attribute` can be killed and go on."""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from .._support import statistics
from .._support.storage import bytes_of
from ..contributions import results
from ..errors import FileError
from ..evaluation.journal import Journal

# Whatever results are made of; nothing else is ever made from a journal.
_CLASSES = {
    name: one
    for module in (results, statistics)
    for name, one in vars(module).items()
    if isinstance(one, type) and is_dataclass(one)
}


def encoded(value: Any) -> Any:
    """A result as JSON content: what JSON has not stands as an object with one key that says what it is.

    Raises:
        TypeError: something in it is of a kind that no result is made of.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, torch.Tensor):
        name = str(value.dtype).removeprefix("torch.")
        return {"tensor": [name, list(value.shape), base64.b64encode(bytes_of(value)).decode()]}
    if isinstance(value, (np.ndarray, np.generic)):
        return {"array": encoded(torch.as_tensor(np.asarray(value)))}
    if isinstance(value, tuple):
        return {"tuple": [encoded(one) for one in value]}
    if isinstance(value, list):
        return [encoded(one) for one in value]
    if isinstance(value, Mapping):
        return {"map": [[encoded(key), encoded(one)] for key, one in value.items()]}
    if _CLASSES.get(type(value).__name__) is type(value):
        kept = {one.name: encoded(getattr(value, one.name)) for one in fields(value) if one.init}
        return {"object": [type(value).__name__, kept]}
    raise TypeError(f"a {type(value).__name__} cannot be kept in a journal")


def decoded(content: Any) -> Any:
    """The result that `encoded` was given; errors of any kind where it was not."""
    if isinstance(content, list):
        return [decoded(one) for one in content]
    if not isinstance(content, dict):
        return content
    ((kind, inner),) = content.items()
    if kind == "float":
        return float(inner)
    if kind == "tensor":
        name, shape, raw = inner
        dtype = getattr(torch, name)
        # Of no bytes there is no buffer.
        flat = torch.frombuffer(bytearray(base64.b64decode(raw)), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        return flat.reshape(shape)
    if kind == "array":
        return decoded(inner).numpy()
    if kind == "tuple":
        return tuple(decoded(one) for one in inner)
    if kind == "map":
        return {decoded(key): decoded(one) for key, one in inner}
    if kind == "object":
        name, kept = inner
        return _CLASSES[name](**{key: decoded(one) for key, one in kept.items()})
    raise ValueError(f"unknown kind {kind!r}")


def noted(
    journal: Journal | None, number: int, names: Sequence[str], measure: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """The results of these names that a journal has as a part, or those that are measured now and noted in it.

    Raises:
        FileError: the part is of other results.
    """
    if journal is None:
        return dict(measure())
    if number not in journal.parts:
        # What is not kept as it is would not be the same in a run that was killed.
        journal.add(number, [[name, encoded(result)] for name, result in measure().items()])
    try:
        found = {name: decoded(content) for name, content in journal.parts[number]}
    except Exception as error:  # whatever a damaged line makes of the classes
        raise FileError(f"{journal.path} is damaged in part {number} ({error}): delete it to start anew") from error
    if list(found) != list(names):
        raise FileError(f"{journal.path} holds other results than {', '.join(names)}: delete it to start anew")
    return found
