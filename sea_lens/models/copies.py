"""Deep copies and pickles of a model in which something of sea_lens's stands: they have nothing of it."""

import copy
from typing import Any

from .forward_stand_in import ForwardStandIn, own_forward
from .hooks import ModuleHook, remove_from


def mark(function: Any) -> Any:
    """The function, known as one that stands in for a method of a model and goes into no copy."""
    function.stands_in = True
    return function


def stands_in(value: Any) -> bool:
    """Whether this is a function that `mark` gave."""
    return getattr(value, "stands_in", None) is True


class CleanCopy:
    """Stands in for `__deepcopy__` and `__reduce_ex__` of one module from `attach` to `remove`."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def attach(self) -> None:
        """Let copies of the module be clean ones."""
        # Past the module's __setattr__, as copy.deepcopy finds it.
        vars(self._module)["__deepcopy__"] = self
        vars(self._module)["__reduce_ex__"] = self.reduced

    def remove(self) -> None:
        """Leave the module; may be called twice."""
        own = vars(self._module)
        if own.get("__deepcopy__") is self:
            del own["__deepcopy__"]
        if own.get("__reduce_ex__") == self.reduced:
            del own["__reduce_ex__"]

    def reduced(self, protocol: int) -> Any:
        """What pickle calls (copy.copy does not)."""
        return self({}).__reduce_ex__(protocol)

    def _is_ours(self, value: Any) -> bool:
        return value is self or value == self.reduced or stands_in(value)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CleanCopy":
        return self

    def __call__(self, memo: dict[int, Any]) -> Any:
        """What copy.deepcopy calls."""
        module = self._module
        state = {key: value for key, value in vars(module).items() if not self._is_ours(value)}
        if isinstance(state.get("forward"), ForwardStandIn) and (own := own_forward(state.pop("forward"))) is not None:
            state["forward"] = own
        copied: Any = object.__new__(type(module))
        memo[id(module)] = copied
        copied.__setstate__(copy.deepcopy(state, memo))
        for part in copied.modules():
            if hasattr(part, "fwd_hooks"):
                remove_from(part)
            for functions in (part._forward_pre_hooks, part._forward_hooks):
                for key in [key for key, function in functions.items() if isinstance(function, ModuleHook)]:
                    del functions[key]
        return copied
