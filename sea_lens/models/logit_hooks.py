"""Changing a model's logits, whatever calls it: a forward pass, a cached run, or generation.

TransformerLens has no hook point behind the soft cap. A bridge's logits come out of the Hugging Face model inside,
where torch's own hooks see every call. HookedTransformer makes them in `forward`, which is stood in for.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, UnsupportedModelError
from .forward_stand_in import ForwardStandIn, first_layer, refuse_losses
from .hooks import ModuleHook
from .lens import Lens

LogitsFunction: TypeAlias = Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, "batch pos d_vocab"]]


def logits_hook(lens: Lens, function: LogitsFunction, begin: Callable[[int], None]) -> "_BridgeHook | _WrappedForward":
    """A change of all logits of a model, from its `attach` to its `remove`, in any order with others.

    Args:
        lens: the model.
        function: from the model's logits, behind the soft cap, to others of their shape and dtype.
        begin: called as each pass begins, with the first layer that it runs.
    """
    return (_WrappedForward if lens.backend == "hooked" else _BridgeHook)(lens, function, begin)


def changes_logits(lens: Lens) -> bool:
    """Whether a change of all logits stands in a model."""
    changes = (change for standing in lens.observer.standing for change in standing.changes)
    return any(isinstance(change, _BridgeHook | _WrappedForward) for change in changes)


class _BridgeHook(ModuleHook):
    """A torch hook on the Hugging Face model of a bridge; losses that the bridge computes follow the new logits."""

    def __init__(self, lens: Lens, function: LogitsFunction, begin: Callable[[int], None]) -> None:
        def before() -> None:
            if lens.observer.aside:
                return
            # A pass that starts at a later layer of a bridge runs those before it too, on what is not theirs.
            begin(getattr(lens.points.blocks[0], "_start_at_layer_idx", None) or 0)

        def after(output: Any) -> Any:
            if lens.observer.aside:
                return output
            if isinstance(output, tuple) or not isinstance(getattr(output, "logits", None), Tensor):
                raise UnsupportedModelError(f"model {lens.name!r} returned {type(output).__name__} without logits")
            if getattr(output, "loss", None) is not None:
                raise InputError("the loss that Hugging Face computes from labels is that of the unchanged logits")
            output.logits = function(output.logits)
            return output

        super().__init__(lens.model.original_model, before, after)


class _WrappedForward(ForwardStandIn):
    """Stands in for `forward` on one HookedTransformer."""

    def __init__(self, lens: Lens, function: LogitsFunction, begin: Callable[[int], None]) -> None:
        super().__init__(lens.model)
        self._n_layers, self._observer = lens.n_layers, lens.observer
        self._function, self._begin = function, begin

    def run(self, asked: inspect.BoundArguments) -> Any:
        if self._observer.aside:
            return self.forward(asked)
        refuse_losses(asked, "unchanged logits")
        self._begin(first_layer(self._n_layers, asked))
        output = self.forward(asked)
        # Without a return type there are no logits, and a pass that stops early returns the residual stream.
        if asked.arguments["return_type"] is None or asked.arguments["stop_at_layer"] is not None:
            return output
        return self._function(output)
