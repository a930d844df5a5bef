"""Standing in for `forward` on one model, whatever calls it."""

import inspect
from abc import ABC, abstractmethod
from typing import Any

from ..errors import InputError
from .lens import Lens


class ForwardStandIn(ABC):
    """Stands in for a model's `forward`; once removed, it passes calls on until the stand-ins above it are gone too.

    TransformerLens calls `forward` past torch's own hooks where it generates or runs with hooks.
    """

    def __init__(self, lens: Lens) -> None:
        self._model, self._active = lens.model, True
        # Present only where something else stands in for the method already.
        self._replaced = vars(lens.model).get("forward")
        self._forward = lens.model.forward
        self._parameters = inspect.signature(type(lens.model).forward)
        # Past the model's __setattr__, which a bridge passes on to the model inside.
        vars(lens.model)["forward"] = self

    @abstractmethod
    def run(self, asked: inspect.BoundArguments) -> Any:
        """What the model returns instead; `asked` holds all arguments by name, and `forward` runs the model on it."""

    def forward(self, asked: inspect.BoundArguments) -> Any:
        """Run the model's own `forward`, or whatever stood in for it before."""
        return self._forward(*asked.args[1:], **asked.kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What is called in place of the model's `forward`."""
        if not self._active:
            return self._forward(*args, **kwargs)
        asked = self._parameters.bind(self._model, *args, **kwargs)
        asked.apply_defaults()
        return self.run(asked)

    def remove(self) -> None:
        """Let the model's own `forward` be called again; may be called twice and in any order with others."""
        self._active = False
        while isinstance(top := vars(self._model).get("forward"), ForwardStandIn) and not top._active:
            if top._replaced is None:
                del vars(self._model)["forward"]
            else:
                vars(self._model)["forward"] = top._replaced


def first_layer(lens: Lens, asked: inspect.BoundArguments) -> int:
    """The layer that a pass begins with."""
    start = asked.arguments.get("start_at_layer") or 0
    return start if start >= 0 else start + lens.n_layers


def refuse_losses(asked: inspect.BoundArguments, what: str) -> None:
    """Refuse a return type with a loss, which the model would compute from other logits than those that come out.

    Raises:
        InputError: naming the return type.
    """
    kind = asked.arguments["return_type"]
    if kind in ("loss", "both"):
        raise InputError(f"return_type {kind!r} is computed from {what}: expected 'logits'")
