"""The weights with which MLPs write to the residual stream, and changes of them that come and go.

Values that somebody else writes into a changed weight meanwhile (a loaded state, an optimizer's step) are theirs: they
stay when the change goes, and no pass is run on them while it stands.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.saturation import widened
from ..errors import UnsupportedModelError
from .hooks import HookFunction
from .lens import Lens


@dataclass
class Changed:
    """A weight that is not what it was.

    Attributes:
        weight: the weight itself.
        original: its values before any change.
        version: of its values, which every writing in place counts up.
        changes: what each `WeightChange` that is in the model adds to it.
        given: the tensors of its values with these changes, the last one and perhaps one before.
    """

    weight: torch.nn.Parameter
    original: Tensor
    version: int
    changes: dict[object, Float[Tensor, "d_in d_out"]] = field(default_factory=dict)
    given: tuple[Tensor, ...] = ()

    @property
    def is_overwritten(self) -> bool:
        """Whether somebody else has written values into it; another dtype or device is none of these."""
        weight = self.weight
        alike = [
            one for one in (self.original, *self.given) if (one.dtype, one.device) == (weight.dtype, weight.device)
        ]
        elsewhere = bool(alike) and all(one.data_ptr() != weight.data_ptr() for one in alike)
        return elsewhere or _version(weight) != self.version

    def copied(self, memo: dict[int, Any]) -> torch.nn.Parameter:
        """The weight in a copy of the model, in which nothing is changed."""
        found = torch.nn.Parameter(self.original.clone(), self.weight.requires_grad)
        return memo.setdefault(id(self.weight), found)


def mlp_out_weight(lens: Lens, layer: int) -> tuple[torch.nn.Parameter, bool]:
    """The matrix of an MLP's output projection, and whether its rows are the hidden units.

    Raises:
        UnsupportedModelError: the layer has no MLP of the usual kind, such as a mixture of experts, or its weights are
            brought for each pass.
    """
    if lens.offloaded(layer) is not None:
        raise UnsupportedModelError(
            f"the weights of layer {layer} of model {lens.name!r} are brought for each pass and dropped after it, so "
            f"that they cannot be changed: expected a model that is loaded whole"
        )
    weight, rows_are_hidden = _of_mlp(lens, getattr(lens.points.blocks[layer], "mlp", None))
    if not isinstance(weight, torch.nn.Parameter) or weight.ndim != 2:
        raise UnsupportedModelError(f"model {lens.name!r} has no output projection of an MLP in layer {layer}")
    return weight, rows_are_hidden


def _of_mlp(lens: Lens, mlp: Any) -> tuple[Any, bool]:
    """`mlp_out_weight` of an MLP, whatever stands there."""
    if lens.backend == "hooked":
        return getattr(mlp, "W_out", None), True
    projection = getattr(getattr(mlp, "out", None), "original_component", None)
    # GPT-2's projections have their weights the other way round.
    return getattr(projection, "weight", None), type(projection).__name__ == "Conv1D"


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
            new = Changed(weight, weight.data, _version(weight))
            changed = self._lens.changed_weights.setdefault(id(weight), new)
            changed.changes[self] = addition if rows_are_hidden else addition.T
            _update(self._lens, changed)

    def proof(self, layer: int) -> HookFunction:
        """A function for a hook behind an MLP that changes nothing, and refuses a pass without the change.

        Raises:
            UnsupportedModelError: the layer's weight is another one, or somebody else has written values into it.
        """

        def prove(x: Tensor) -> None:
            mlp = getattr(self._lens.points.blocks[layer], "mlp", None)
            weight = _of_mlp(self._lens, mlp)[0]
            changed = self._lens.changed_weights.get(id(weight))
            if changed is None or self not in changed.changes or changed.is_overwritten:
                raise UnsupportedModelError(
                    f"model {self._lens.name!r}: the weight in layer {layer} that was changed is another one now, or "
                    f"others have written into it (a state was loaded, an optimizer has made a step, the MLP was "
                    f"replaced, torch.func.functional_call): expected the weights to be left alone while they are "
                    f"changed; take out what is in the model first (sl.remove_all)"
                )

        return prove

    def remove(self) -> None:
        """Take the change away; the last one to go leaves the very weights that were there. May be called twice."""
        for changed in tuple(self._lens.changed_weights.values()):
            changed.changes.pop(self, None)
            _update(self._lens, changed)


def _version(weight: Tensor) -> int:
    return 0 if weight.is_inference() else weight._version


def _update(lens: Lens, changed: Changed) -> None:
    weight, overwritten = changed.weight, changed.is_overwritten
    # The model may have gone to another dtype or device meanwhile.
    original = changed.original.to(weight.device, weight.dtype)
    if not changed.changes:
        if not overwritten:
            weight.data = original
        vars(weight).pop("__deepcopy__", None)
        lens.changed_weights.pop(id(weight), None)
        return
    vars(weight)["__deepcopy__"] = changed.copied
    if overwritten:
        return
    total = widened(original)
    for addition in changed.changes.values():
        total = total + addition.to(total)
    total = total.to(original.dtype)
    # Kept first, so that they are known wherever an interrupt comes.
    changed.given = (*changed.given, total)
    weight.data = total
    changed.given, changed.original = (total,), original
