"""The weights with which MLPs write to the residual stream, and changes of them that come and go."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UnsupportedModelError
from .lens import Lens


@dataclass
class Changed:
    """A weight that is not what it was.

    Attributes:
        weight: the weight itself.
        original: its values before any change.
        changes: what each `WeightChange` that is in the model adds to it.
    """

    weight: torch.nn.Parameter
    original: Tensor
    changes: dict[object, Float[Tensor, "d_in d_out"]] = field(default_factory=dict)

    def copied(self, memo: dict[int, Any]) -> torch.nn.Parameter:
        """The weight in a copy of the model, in which nothing is changed."""
        found = torch.nn.Parameter(self.original.clone(), self.weight.requires_grad)
        return memo.setdefault(id(self.weight), found)


def mlp_out_weight(lens: Lens, layer: int) -> tuple[torch.nn.Parameter, bool]:
    """The matrix of an MLP's output projection, and whether its rows are the hidden units.

    Raises:
        UnsupportedModelError: the layer has no MLP of the usual kind, such as a mixture of experts.
    """
    mlp = getattr(lens.points.blocks[layer], "mlp", None)
    if lens.backend == "hooked":
        weight, rows_are_hidden = getattr(mlp, "W_out", None), True
    else:
        projection = getattr(getattr(mlp, "out", None), "original_component", None)
        weight = getattr(projection, "weight", None)
        # GPT-2's projections have their weights the other way round.
        rows_are_hidden = type(projection).__name__ == "Conv1D"
    if not isinstance(weight, torch.nn.Parameter) or weight.ndim != 2:
        raise UnsupportedModelError(f"model {lens.name!r} has no output projection of an MLP in layer {layer}")
    return weight, rows_are_hidden


class WeightChange:
    """Adds to the output projections of some MLPs from `attach` to `remove`, in any order with others.

    Args:
        lens: the model.
        additions: by layer, what is added to the matrix that maps hidden units to the residual stream. The sum is
            computed in float32 and rounded once to the model's dtype.
    """

    def __init__(self, lens: Lens, additions: Mapping[int, Float[Tensor, "d_mlp d_model"]]) -> None:
        self._lens, self._additions = lens, additions

    def attach(self) -> None:
        """Make the change."""
        for layer, addition in self._additions.items():
            weight, rows_are_hidden = mlp_out_weight(self._lens, layer)
            changed = self._lens.changed_weights.setdefault(id(weight), Changed(weight, weight.data))
            changed.changes[self] = addition if rows_are_hidden else addition.T
            _update(self._lens, changed)

    def remove(self) -> None:
        """Take the change away; the last one to go leaves the very weights that were there. May be called twice."""
        for changed in tuple(self._lens.changed_weights.values()):
            changed.changes.pop(self, None)
            _update(self._lens, changed)


def _update(lens: Lens, changed: Changed) -> None:
    weight, original = changed.weight, changed.original
    if not changed.changes:
        weight.data = original
        vars(weight).pop("__deepcopy__", None)
        lens.changed_weights.pop(id(weight), None)
        return
    vars(weight)["__deepcopy__"] = changed.copied
    total = original.to(torch.promote_types(original.dtype, torch.float32))
    for addition in changed.changes.values():
        total = total + addition.to(total)
    weight.data = total.to(original.dtype)
