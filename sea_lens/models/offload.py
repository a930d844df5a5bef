"""Blocks whose weights are brought as the block runs and dropped after it: a model that is larger than the memory.

Hugging Face and accelerate say where each weight lies: in the checkpoint itself, or in the CPU's memory beside an
accelerator. accelerate's own hooks stand at the smallest modules, whose `forward` a TransformerBridge often passes by,
so whole blocks are hooked here in their place. Between passes such a weight is a tensor on the device "meta", which
holds no numbers: whoever reads it asks for it first (`brought`), and all other arithmetic on it fails.

A backward pass needs the weights of each block once more. What autograd keeps of them is their name, by which they are
read again.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from .configuration import text_config

_INNER = "_original_component"
# What a block is given that keeps its tensors on the devices where they were made.
_STAY = ("past_key_values", "cache")


@dataclass(frozen=True)
class _Named:
    """A view of a weight, as autograd keeps it."""

    name: str
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True, eq=False)
class Offloaded:
    """The weights of one block, which lie elsewhere than it runs; a hook before and one after the block.

    Attributes:
        source: all such weights of the model by name. A tensor of it is made when it is looked at.
        names: by the path of a module within the block and what the weight is called there, the name in `source`.
        device: where the block runs.
        empty: by name, what stands in for a weight between passes.
    """

    source: Mapping[str, Tensor]
    names: Mapping[tuple[str, str], str]
    device: torch.device
    empty: Mapping[str, nn.Parameter]
    _saving: list[tuple[Any, dict[int, Any]]] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Offloaded":
        return self

    def attach(self, block: nn.Module) -> None:
        """Empty a block, and bring its weights whenever it runs."""
        self.drop(block)
        block.register_forward_pre_hook(self.before, prepend=True, with_kwargs=True)
        # A pass that is stopped within a block leaves none of its weights behind.
        block.register_forward_hook(self.after, always_call=True)

    def value(self, name: str) -> Tensor:
        """A weight, where the block runs."""
        # The model may have gone to another dtype since it was loaded.
        return self.source[name].to(self.device, self.empty[name].dtype)

    def bring(self, block: nn.Module) -> dict[int, tuple[str, Tensor]]:
        """Put the weights into the block, or a copy of it; by the place of their numbers, which they are.

        Raises:
            UnsupportedModelError: gradients of them are asked for.
        """
        places = {}
        for module, own, name in self._weights(block):
            if getattr(module._parameters[own], "requires_grad", False):
                raise UnsupportedModelError(
                    f"weight {name!r} is brought for each pass and takes no gradient: expected parameters that are "
                    f"frozen, model.requires_grad_(False)"
                )
            value = self.value(name)
            module._parameters[own] = nn.Parameter(value, requires_grad=False)
            places[value.untyped_storage().data_ptr()] = name, value
        return places

    def drop(self, block: nn.Module) -> None:
        """Take the weights out of the block, or a copy of it."""
        for module, own, name in self._weights(block):
            module._parameters[own] = self.empty[name]

    def before(self, block: nn.Module, args: Any, kwargs: Any) -> Any:
        """What runs before the block: its weights, and its input on its device."""
        from accelerate.utils import send_to_device

        # Nothing that an interrupted pass left is kept.
        for _, left in self._saving:
            left.clear()
        places = self.bring(block)
        if torch.is_grad_enabled():
            saving = torch.autograd.graph.saved_tensors_hooks(_packing(places), self._unpacked)
            saving.__enter__()
            self._saving.append((saving, places))
        return send_to_device(args, self.device), send_to_device(kwargs, self.device, skip_keys=list(_STAY))

    def after(self, block: nn.Module, args: Any, output: Any) -> None:
        """What runs after the block, whether it came to an end or not."""
        if self._saving:
            saving, places = self._saving.pop()
            saving.__exit__()
            places.clear()
        self.drop(block)

    def _weights(self, block: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
        for (path, own), name in self.names.items():
            module = block
            for part in path.split(".") if path else ():
                module = inner(module._modules[part])
            yield module, own, name

    def _unpacked(self, kept: Any) -> Tensor:
        if not isinstance(kept, _Named):
            return kept
        value = self.value(kept.name)
        return value.as_strided(kept.size, kept.stride, int(value.storage_offset()) + kept.offset)


def _packing(places: Mapping[int, tuple[str, Tensor]]) -> Any:
    def packed(tensor: Tensor) -> Any:
        # What is looked up is alive as long as it is in there, so that nothing else has its place.
        name, value = places.get(tensor.untyped_storage().data_ptr(), (None, tensor))
        if name is None or tensor.dtype != value.dtype:
            return tensor
        offset = int(tensor.storage_offset()) - int(value.storage_offset())
        return _Named(name, tensor.size(), tensor.stride(), offset)

    return packed


def inner(module: Any) -> Any:
    """The Hugging Face module that a bridge's component wraps, or the module itself."""
    while _INNER in module._modules:
        module = module._modules[_INNER]
    return module


def offloaded(block: Any) -> Offloaded | None:
    """How the weights of a block are brought, None where they lie where it runs."""
    found = (getattr(hook, "__self__", None) for hook in inner(block)._forward_pre_hooks.values())
    return next((one for one in found if isinstance(one, Offloaded)), None)


def made_of_offloaded(bridge: Any) -> str | None:
    """The first weight of a bridge that was made of weights while these were elsewhere, None where there is none."""
    blocks = (found for module in bridge.modules() if (found := offloaded(module)) is not None)
    known = {id(empty) for found in blocks for empty in found.empty.values()}
    names = (name for name, weight in bridge.named_parameters() if weight.is_meta and id(weight) not in known)
    return next((name.replace(f".{_INNER}", "") for name in names), None)


@contextlib.contextmanager
def brought(block: Any) -> Iterator[None]:
    """A block with its weights in it, for the length of a context."""
    if (found := offloaded(block)) is None:
        yield
        return
    found.bring(inner(block))
    try:
        yield
    finally:
        found.drop(inner(block))


def block_paths(hf_model: Any) -> list[str]:
    """Where the blocks of a Hugging Face model are; empty where they cannot be told."""
    n_layers = getattr(text_config(hf_model.config), "num_hidden_layers", None)
    lists = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in hf_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    }
    if not lists:
        return []
    # A model of images as well has blocks for them too.
    path = max(lists, key=lambda name: lists[name])
    return [f"{path}.{index}" for index in range(len(hf_model.get_submodule(path)))]


def offload(hf_model: Any, devices: Mapping[str, torch.device]) -> None:
    """Hook the blocks of a model that accelerate has dispatched, in place of its own hooks.

    Args:
        hf_model: with the weights of these blocks on the disk or in the CPU's memory.
        devices: where each block runs, by its path.
    """
    from accelerate.hooks import remove_hook_from_module

    source = _source(hf_model)
    known = set(source)
    runs_on = {devices.get(name, place) for name, place in hf_model.hf_device_map.items()}
    for path, device in devices.items():
        block = hf_model.get_submodule(path)
        remove_hook_from_module(block, recurse=True)
        names, empty = {}, {}
        for where, module in block.named_modules():
            for own, weight in module._parameters.items():
                name = ".".join(part for part in (path, where, own) if part)
                # What the checkpoint lacks was made anew, and stays.
                if weight is not None and name in known:
                    names[where, own] = name
                    empty[name] = nn.Parameter(weight.to("meta"), requires_grad=False)
            for own, buffer in module._buffers.items():
                module._buffers[own] = None if buffer is None else buffer.to(device)
        Offloaded(source, names, device, empty).attach(block)
    if len({torch.device(place) for place in runs_on}) == 1:
        # As if nothing of it were elsewhere.
        remove_hook_from_module(hf_model, recurse=True)
        del hf_model.hf_device_map
    else:
        hf_model.hf_device_map = {name: devices.get(name, place) for name, place in hf_model.hf_device_map.items()}


def _source(hf_model: Any) -> Mapping[str, Tensor]:
    """All weights that accelerate brings, by name."""
    for module in hf_model.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            if (weights := getattr(one, "weights_map", None)) is not None:
                return getattr(weights, "dataset", weights)
    return {}
