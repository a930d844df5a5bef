"""One hook on a module of a plain Hugging Face model: what stands there in place of a hook point of TransformerLens."""

from typing import Any

from torch import Tensor

from .hooks import Hook, HookFunction, ModuleHook
from .plain_sites import Place, first_tensor


class PlainHook(Hook):
    """A function of the activation at a place of a plain model, from `attach` to `remove`.

    Args:
        observer: of the model's passes; counts the calls.
        layer: that it acts in.
        place: where.
        function: maps the activation, or returns None to leave it.
        heads: into how many units an activation is split; None where it is one.
    """

    def __init__(self, observer: Any, layer: int, place: Place, function: HookFunction, heads: int | None) -> None:
        super().__init__(observer, place.path, place.module, function)
        self.layer, self._place, self._heads = layer, place, heads
        self._hook = (
            ModuleHook(place.module, given=self._of_given)
            if place.before
            else ModuleHook(place.module, after=self._of_output)
        )

    def attach(self) -> None:
        """Put the hook in."""
        self.observer.hooks.append(self)
        self._hook.attach()

    def remove(self) -> None:
        """Take just this hook out; may be called twice."""
        self._hook.remove()
        self.observer.hooks[:] = [hook for hook in self.observer.hooks if hook is not self]

    def _of_output(self, output: Any) -> Any:
        found = self._changed(first_tensor(output))
        if found is None or not isinstance(output, (tuple, list)):
            return found
        return type(output)([found, *output[1:]])

    def _of_given(self, args: tuple[Any, ...]) -> Any:
        found = self._changed(args[0])
        return None if found is None else (found, *args[1:])

    def _changed(self, x: Tensor) -> Tensor | None:
        scale = self._place.scale
        if self._heads is not None:
            found = self(x.unflatten(-1, (self._heads, -1)), None)
            return None if found is None else found.flatten(-2)
        if scale == 1:
            return self(x, None)
        # What users call the activation is what the block adds.
        found = self(x * scale, None)
        return None if found is None else found / scale

    def _keep_in_graph(self) -> None:
        """Nothing: modules hand on what a hook gives."""
