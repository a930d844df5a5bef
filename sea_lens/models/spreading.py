"""Which blocks of a model lie where, settled before any weight is read.

Only whole blocks are brought for each pass. What stands around them (embeddings, the last norm, the unembedding) stays
on the device that the passes begin on, since every pass and every readout takes it.
"""

from dataclasses import replace
from typing import Any

import torch

from ..errors import InputError, UnsupportedModelError
from .offload import block_paths
from .placement import Placement, kind


def spread(name: str, placed: Placement, dtype: torch.dtype | None) -> tuple[Placement, dict[str, torch.device]]:
    """A placement whose device map is about blocks and what stands around them.

    Args:
        name: of a Hugging Face model.
        placed: by a device map.
        dtype: of the weights, None for what they are stored in.

    Returns:
        The placement, by a dict, and by its path where each block runs whose weights lie elsewhere.

    Raises:
        InputError: the device map names what is no part of the model, or does not say where a block goes.
        UnsupportedModelError: weights would lie elsewhere, and the model's blocks cannot be told.
    """
    if placed.quantization_config is not None or not (placed.brings or isinstance(placed.device_map, str)):
        return placed, {}
    model = _empty(name, dtype)
    paths = block_paths(model)
    full = replace(placed, device_map=_as_dict(model, placed, paths), max_memory=None)
    if not full.brings:
        return full, {}
    if not paths:
        raise UnsupportedModelError(
            f"model {name!r}: device_map has weights elsewhere than they are used, and the blocks that they could be "
            f"brought for are not to be found: expected a device_map of accelerators, or of the CPU alone"
        )
    assert isinstance(full.device_map, dict)
    unknown = [part for part in full.device_map if part and not _has(model, part)]
    if unknown:
        raise InputError(
            f"device_map names {unknown[0]!r}, which the model does not have: expected parts such as {paths[0]!r}"
        )
    return _by_block(model, full, paths)


def _empty(name: str, dtype: torch.dtype | None) -> Any:
    """The model without numbers in its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, **({} if dtype is None else {"dtype": dtype}))
    model.tie_weights()
    return model


def _as_dict(model: Any, placed: Placement, paths: list[str]) -> dict[str, Any]:
    if isinstance(placed.device_map, dict):
        return placed.device_map
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory, get_max_memory

    whole = sorted({type(model.get_submodule(path)).__name__ for path in paths})
    limits: Any = placed.max_memory
    if placed.device_map == "sequential":
        limits = get_max_memory(limits)
    else:
        low_zero = placed.device_map == "balanced_low_0"
        limits = get_balanced_memory(model, limits, no_split_module_classes=whole, low_zero=low_zero)
    return dict(infer_auto_device_map(model, limits, no_split_module_classes=whole))


def _has(model: Any, part: str) -> bool:
    try:
        model.get_submodule(part)
    except AttributeError:
        return part in dict(model.named_parameters())
    return True


def _by_block(model: Any, full: Placement, paths: list[str]) -> tuple[Placement, dict[str, torch.device]]:
    assert isinstance(full.device_map, dict)
    given, main = full.device_map, full.main
    device_map: dict[str, Any] = {}
    devices: dict[str, torch.device] = {}
    runs_on = main
    for path in paths:
        inside = [place for part, place in given.items() if part.startswith(f"{path}.")]
        places = inside or [_place(given, path)]
        if places == [None]:
            raise InputError(f"device_map does not say where {path!r} goes: expected a place for every block")
        # A block is brought as a whole, and from the farthest place of any of its parts.
        elsewhere = sorted({kind(place) for place in places if full.is_elsewhere(place)})
        if elsewhere:
            device_map[path], devices[path] = elsewhere[-1], runs_on
        else:
            device_map[path], runs_on = places[0], torch.device(places[0])
    for part in _around(model, paths[0].rpartition(".")[0]):
        place = _place(given, part)
        device_map[part] = main if place is None or full.is_elsewhere(place) else place
    return replace(full, device_map={part: _plain(place) for part, place in device_map.items()}), devices


def _place(given: dict[str, Any], path: str) -> Any:
    """What a device map says of a part of a model: its longest name that the part begins with counts."""
    names = [name for name in given if not name or path == name or path.startswith(f"{name}.")]
    return given[max(names, key=len)] if names else None


def _around(model: Any, stem: str) -> list[str]:
    """The largest parts of a model that hold no blocks."""
    found, at = [], ""
    for step in stem.split("."):
        inside = model.get_submodule(at) if at else model
        found += [f"{at}.{name}".lstrip(".") for name, _ in inside.named_children() if name != step]
        found += [f"{at}.{name}".lstrip(".") for name, _ in inside.named_parameters(recurse=False)]
        at = f"{at}.{step}".lstrip(".")
    return found


def _plain(place: Any) -> Any:
    """A place as accelerate writes it."""
    if isinstance(place, torch.device):
        return place.type if place.index is None else place.index if place.type == "cuda" else str(place)
    return place
