"""One hook on one hook point of a TransformerLens model: known wherever TransformerLens was interrupted, and counted.

Hooks are removed by what they are, never by level or by `reset_hooks`, so that a user's own hooks are left alone.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

HookFunction = Callable[[Tensor], Tensor | None]


class Hook:
    """A function at a hook point, from `attach` to `remove`.

    Args:
        observer: of the model's passes; counts the calls.
        name: of the hook point.
        point: the hook point.
        function: maps the activation, or returns None to leave it.
        prepend: whether it is called before the hooks that stand there already.
        proven: whether a pass that does not call it once is refused.
    """

    def __init__(
        self,
        observer: Any,
        name: str,
        point: Any,
        function: HookFunction,
        *,
        prepend: bool = False,
        proven: bool = True,
    ) -> None:
        self.observer, self.name, self.point, self.function = observer, name, point, function
        self.prepend, self.proven = prepend, proven
        found = re.match(r"blocks\.(\d+)\.", name)
        self.layer = int(found[1]) if found else None

    def __repr__(self) -> str:
        return f"Hook({self.name})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Hook":
        return self

    @property
    def attached(self) -> bool:
        """Whether it stands in the model."""
        return self in self.observer.hooks

    def __call__(self, x: Tensor, hook: Any) -> Tensor | None:
        """What TransformerLens calls with an activation."""
        observer = self.observer
        if observer.in_other_hands() or observer.aside:
            return None
        if (current := observer.current_pass) is not None:
            current.calls[self] = current.calls.get(self, 0) + 1
        found = self.function(x)
        if found is not None and found.requires_grad:
            self._keep_in_graph()
        return found

    def _keep_in_graph(self) -> None:
        """Let gradients come to what the hook gave.

        A block of TransformerLens 3.9 that multiplies what it adds (Granite) goes on without it where its numbers are
        those of the activation, unless a backward hook is listed at the point: so this one is, until it is removed.
        """
        functions, listed = self.point._forward_hooks, self.point.bwd_hooks
        own = [known for known in self.point.fwd_hooks if hook_behind(functions.get(known.hook.id)) is self]
        listed += [known for known in own if all(known is not other for other in listed)]

    def attach(self) -> None:
        """Put the hook in."""
        self.observer.hooks.append(self)
        # What TransformerLens registers is a function, which a copy of the hook point would share.
        self.observer.keep_out_of_copies(self.point)
        self.point.add_hook(self, is_permanent=True, prepend=self.prepend)

    def remove(self) -> None:
        """Take just this hook out, wherever it stands among others; may be called twice."""
        remove_from(self.point, self)
        self.observer.hooks[:] = [hook for hook in self.observer.hooks if hook is not self]


def hook_behind(function: Any) -> Any:
    """The hook of sea_lens's that a function on a hook point calls, None where it is somebody else's."""
    return next((held for held in _held(function) if isinstance(held, Hook)), None)


def came_with_the_model(function: Any) -> bool:
    """Whether a function on a hook point joins parts of a bridge that TransformerLens made, as OPT's has in 4.3."""
    setup = "transformer_lens.model_bridge.component_setup"
    return any(callable(held) and getattr(held, "__module__", None) == setup for held in _held(function))


def _held(function: Any) -> Iterator[Any]:
    """What the closure of a function holds."""
    for cell in getattr(function, "__closure__", None) or ():
        # An empty cell raises.
        with contextlib.suppress(ValueError):
            yield cell.cell_contents


def remove_from(point: Any, hook: Hook | None = None) -> None:
    """Remove a hook from a hook point, all of sea_lens's by default, also where it was only half put in."""
    # TransformerLens registers with torch first and notes it down afterwards, and may be interrupted in between.
    functions = point._forward_hooks
    ours = {
        key for key, function in tuple(functions.items()) if (found := hook_behind(function)) and hook in (None, found)
    }
    for handles in (point.fwd_hooks, point.bwd_hooks):
        handles[:] = [known for known in handles if known.hook.id not in ours]
    for key in ours:
        for kept in (point._forward_hooks_with_kwargs, point._forward_hooks_always_called, functions):
            kept.pop(key, None)
    if not any(hook_behind(function) for function in functions.values()):
        vars(point).pop("__deepcopy__", None)


class ModuleHook:
    """Torch's own hooks before and after one module, from `attach` to `remove`.

    Args:
        module: the module; copies of it are left alone.
        before: called as a call of the module begins.
        after: maps what the module returns.
        given: maps the positional arguments of a call, or returns None to leave them.
    """

    def __init__(
        self,
        module: Any,
        before: Callable[[], None] | None = None,
        after: Callable[[Any], Any] | None = None,
        given: Callable[[tuple[Any, ...]], Any] | None = None,
    ) -> None:
        self._module, self._before, self._after, self._given = module, before, after, given

    def __deepcopy__(self, memo: dict[int, Any]) -> "ModuleHook":
        return self

    def __call__(self, module: Any, arguments: Any, *output: Any) -> Any:
        """What torch calls: without an output before the module, and with one behind it."""
        if module is self._module:
            if not output and self._before is not None:
                self._before()
            if not output and self._given is not None:
                return self._given(arguments)
            if output and self._after is not None:
                return self._after(*output)
        return None

    def attach(self) -> None:
        """Put the hooks in."""
        if self._before is not None or self._given is not None:
            self._module.register_forward_pre_hook(self)
        if self._after is not None:
            self._module.register_forward_hook(self)

    def remove(self) -> None:
        """Take the hooks out; may be called twice."""
        for functions in (self._module._forward_pre_hooks, self._module._forward_hooks):
            for key in [key for key, function in tuple(functions.items()) if function is self]:
                functions.pop(key, None)
