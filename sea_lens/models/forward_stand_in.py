"""Standing in for `forward` on one model, whatever calls it."""

import inspect
from abc import ABC, abstractmethod
from typing import Any

from ..errors import InputError


class ForwardStandIn(ABC):
    """Stands in for a module's `forward` from `attach` on; once removed, it passes calls on while others stand on it.

    TransformerLens calls `forward` past torch's own hooks where it generates or runs with hooks.

    Args:
        module: whose `forward` it is.
    """

    def __init__(self, module: Any) -> None:
        self._module, self._active = module, False
        self._replaced: Any = None
        self._forward: Any = None
        self._parameters = inspect.signature(type(module).forward)
        # Hugging Face's generation looks at the parameters of `forward`.
        self.__signature__ = self._parameters.replace(parameters=list(self._parameters.parameters.values())[1:])

    def __deepcopy__(self, memo: dict[int, Any]) -> "ForwardStandIn":
        return self

    def attach(self) -> None:
        """Stand in, on top of whatever stands in already."""
        # Present only where something else stands in for the method.
        self._replaced = vars(self._module).get("forward")
        self._forward = self._module.forward
        self._active = True
        # Past the module's __setattr__, which a bridge passes on to the model inside.
        vars(self._module)["forward"] = self

    @abstractmethod
    def run(self, asked: inspect.BoundArguments) -> Any:
        """What the model returns instead; `asked` holds all arguments by name, and `forward` runs the model on it."""

    def bound(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        """Arguments of a call by name, the module among them, defaults too."""
        asked = self._parameters.bind(self._module, *args, **kwargs)
        asked.apply_defaults()
        return asked

    def forward(self, asked: inspect.BoundArguments) -> Any:
        """Run the model's own `forward`, or whatever stood in for it before."""
        return self._forward(*asked.args[1:], **asked.kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What is called in place of the model's `forward`."""
        return self.run(self.bound(*args, **kwargs)) if self._active else self._forward(*args, **kwargs)

    def remove(self) -> None:
        """Let the model's own `forward` be called again; may be called twice and in any order with others."""
        self._active = False
        while isinstance(top := vars(self._module).get("forward"), ForwardStandIn) and not top._active:
            if top._replaced is None:
                vars(self._module).pop("forward", None)
            else:
                vars(self._module)["forward"] = top._replaced


def own_forward(stand_in: ForwardStandIn) -> Any:
    """What stood in for `forward` before all stand-ins of sea_lens's, None where nothing did."""
    below = stand_in._replaced
    return own_forward(below) if isinstance(below, ForwardStandIn) else below


def first_layer(n_layers: int, asked: inspect.BoundArguments) -> int:
    """The layer that a pass begins with."""
    start = asked.arguments.get("start_at_layer") or 0
    return start if start >= 0 else start + n_layers


def refuse_losses(asked: inspect.BoundArguments, what: str) -> None:
    """Refuse a return type with a loss, which the model would compute from other logits than those that come out.

    Raises:
        InputError: naming the return type.
    """
    kind = asked.arguments["return_type"]
    if kind in ("loss", "both"):
        raise InputError(f"return_type {kind!r} is computed from {what}: expected 'logits'")
