"""Where the weights of a model go as it is loaded, and in how many bits."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError, UnsupportedModelError

_SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")


# Where weights may lie that are brought for each pass.
_ELSEWHERE = ("cpu", "disk")


@dataclass(frozen=True)
class Placement:
    """Where to put a model.

    Attributes:
        device: one device for all of it, None where a device map says where.
        device_map: Hugging Face's, None for one device.
        quantization_config: Hugging Face's, None for weights as they are.
        max_memory: Hugging Face's, how much of each device a spread may take; None for what is free.
        offload_folder: Hugging Face's, for weights that cannot be read as they lie in the checkpoint.
    """

    device: torch.device | None
    device_map: str | dict[str, Any] | None = None
    quantization_config: Any = None
    max_memory: dict[int | str, int | str] | None = None
    offload_folder: str | None = None

    @staticmethod
    def of(
        device: str | torch.device | None,
        device_map: Any,
        quantization_config: Any,
        max_memory: Any = None,
        offload_folder: Any = None,
    ) -> "Placement":
        """What a user asked for; the first GPU where there is one, else the CPU, by default.

        Raises:
            InputError: a device that cannot be used, two answers to one question, or an unknown device map.
            UnsupportedModelError: weights in few bits that are brought for each pass.
        """
        if device_map is not None and not isinstance(device_map, dict) and device_map not in _SPREADS:
            device_map = {"": _one_place(device_map)}
        if max_memory is not None and not (isinstance(device_map, str) and isinstance(max_memory, Mapping)):
            raise InputError(
                "max_memory says how a device_map such as 'auto' may spread a model: expected both, and a dict from "
                "devices to sizes, such as {0: '20GiB', 'cpu': '60GiB'}"
            )
        if max_memory is not None:
            here = [*range(torch.accelerator.device_count()), "mps", "cpu", "disk"]
            if strange := [name for name in max_memory if name not in here]:
                raise InputError(f"max_memory names {strange[0]!r}, which is no device here: expected some of {here}")
        if device_map is None:
            if quantization_config is not None:
                # Quantised weights are made where they stay.
                return Placement(None, {"": str(usable(device))}, quantization_config)
            return Placement(usable(device))
        if device is not None:
            raise InputError("device and device_map both say where to put the model: expected one of them")
        if isinstance(device_map, dict):
            if any(kind(place) == "meta" for place in device_map.values()):
                raise InputError("device_map puts weights on 'meta', which holds no numbers: expected 'disk' or 'cpu'")
            for place in set(device_map.values()) - {"disk"}:
                usable(f"cuda:{place}" if isinstance(place, int) else place)
        folder = None if offload_folder is None else os.fspath(offload_folder)
        placed = Placement(
            None, device_map, quantization_config, None if max_memory is None else dict(max_memory), folder
        )
        if placed.brings and quantization_config is not None:
            raise UnsupportedModelError(
                "device_map brings weights from elsewhere for each pass, which weights in few bits cannot be: expected "
                "a device_map of accelerators alone, or no quantization_config"
            )
        return placed

    @property
    def main(self) -> torch.device:
        """Where what is not on an accelerator of its own runs, by a device map that is a dict."""
        places = self.device_map.values() if isinstance(self.device_map, dict) else ()
        found = next((place for place in places if kind(place) not in _ELSEWHERE), "cpu")
        return torch.device("cuda", found) if isinstance(found, int) else torch.device(found)

    @property
    def brings(self) -> bool:
        """Whether a device map that is a dict has weights elsewhere than they are used."""
        if not isinstance(self.device_map, dict):
            return False
        return any(self.is_elsewhere(place) for place in self.device_map.values())

    def is_elsewhere(self, place: Any) -> bool:
        """Whether weights at a place of the device map are brought for each pass."""
        return kind(place) in _ELSEWHERE and kind(place) != self.main.type

    @property
    def on_cpu(self) -> bool:
        """Whether no accelerator holds any of it."""
        if self.device is not None:
            return self.device.type == "cpu"
        if isinstance(self.device_map, dict):
            return self.main.type == "cpu"
        return not torch.accelerator.is_available()

    @property
    def options(self) -> dict[str, Any]:
        """What Hugging Face's `from_pretrained` is told of it."""
        names = ("device_map", "quantization_config", "max_memory", "offload_folder")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}


def usable(device: str | torch.device | None) -> torch.device:
    """A device as torch has it; the first GPU where there is one, else the CPU, for None.

    Raises:
        InputError: it cannot be used.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.zeros(1, device=target).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise InputError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error
    return target


def _one_place(device_map: Any) -> str | int:
    """The place of a whole model, as the value of a device map."""
    if device_map == "disk" or (isinstance(device_map, int) and not isinstance(device_map, bool)):
        return device_map
    try:
        return str(torch.device(device_map))
    except (RuntimeError, TypeError):
        raise InputError(
            f"unknown device_map {device_map!r}: expected one of {', '.join(_SPREADS)}, a device, 'disk', or a dict"
        ) from None


def kind(place: Any) -> str:
    """What sort of place a value of a device map is."""
    return "cuda" if isinstance(place, int) else str(place).split(":")[0]
