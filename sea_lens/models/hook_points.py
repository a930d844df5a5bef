"""The hook points of a model as it is now, found from the blocks that run.

TransformerLens lists a model's hook points once. Blocks that were replaced since (spliced in, pruned) are not in that
list, so each point is looked up by its path whenever it is asked for.
"""

from collections.abc import Iterator
from typing import Any


class HookPoints:
    """Hook points by name.

    Args:
        model: a TransformerLens model.
        names: of all hook points; from the model by default.
    """

    def __init__(self, model: Any, names: tuple[str, ...] | None = None) -> None:
        self.model = model
        self.names = tuple(model.hook_dict) if names is None else names

    @property
    def blocks(self) -> Any:
        """The blocks that run: those of a HookedTransformer, and those of the Hugging Face model inside a bridge."""
        inside = getattr(self.model, "original_model", None)
        mapping = getattr(getattr(self.model, "adapter", None), "component_mapping", None) or {}
        path = getattr(mapping.get("blocks"), "name", None)
        if inside is None or path is None:
            return self.model.blocks
        try:
            return inside.get_submodule(path)
        except AttributeError:
            return self.model.blocks

    def get(self, name: str) -> Any:
        """The hook point of this name, None where the model has none."""
        return self._found(name, self.blocks)

    def _found(self, name: str, blocks: Any) -> Any:
        parts = name.split(".")
        try:
            at = self.model
            if parts[0] == "blocks" and len(parts) > 2:
                at, parts = blocks[int(parts[1])], parts[2:]
            for part in parts:
                at = at[int(part)] if part.isdigit() else getattr(at, part)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return None
        return at if hasattr(at, "fwd_hooks") else None

    def items(self) -> Iterator[tuple[str, Any]]:
        """All that are there, by name; one point may have several names."""
        blocks = self.blocks
        return ((name, point) for name in self.names if (point := self._found(name, blocks)) is not None)

    def values(self) -> Iterator[Any]:
        """All that are there."""
        return (point for _, point in self.items())

    def __getitem__(self, name: str) -> Any:
        if (point := self.get(name)) is None:
            raise KeyError(name)
        return point

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None
