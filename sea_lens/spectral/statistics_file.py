"""How statistics of demonstrations lie in a file: sums, or the activations of each layer, as named tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .layer_statistics import Three
from .statistics import Activations, InMemory, Statistics, Sums

_OUTER = ("sum_outer_positive", "sum_outer_negative")
_SINGLE = ("sum_neutral", "sum_positive", "sum_negative")


def to_tensors(statistics: Statistics, layers: Sequence[int]) -> dict[str, Tensor]:
    """The tensors of a file, by name."""
    if isinstance(statistics, Sums):
        return dict(zip((*_OUTER, *_SINGLE), (*statistics.outer, *statistics.single), strict=True))
    assert isinstance(statistics, Activations)
    return {
        f"layers.{layer}.{kind}": values
        for index, layer in enumerate(layers)
        for kind, values in statistics.raw(index)._asdict().items()
    }


def from_tensors(tensors: Mapping[str, Tensor], layers: Sequence[int], n: Any) -> Statistics:
    """What a file's tensors are.

    Raises:
        KeyError, ValueError, RuntimeError: the file is damaged.
    """
    if _OUTER[0] in tensors:
        first, second = (tensors[name] for name in _OUTER)
        return Sums(n, (first, second), Three(*(tensors[name] for name in _SINGLE)))
    of_layers = [[tensors[f"layers.{layer}.{kind}"] for kind in Three._fields] for layer in layers]
    values = Three(*(torch.stack(sides) for sides in zip(*of_layers, strict=True)))
    n_layers, _, units, d = values.neutral.shape
    return Activations((n_layers, units, d), (InMemory(values),))
