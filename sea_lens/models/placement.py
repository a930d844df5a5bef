"""Where the weights of a model go as it is loaded, and in how many bits."""

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError, UnsupportedModelError

_SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True)
class Placement:
    """Where to put a model.

    Attributes:
        device: one device for all of it, None where a device map says where.
        device_map: Hugging Face's, None for one device.
        quantization_config: Hugging Face's, None for weights as they are.
    """

    device: torch.device | None
    device_map: str | dict[str, Any] | None = None
    quantization_config: Any = None

    @staticmethod
    def of(device: str | torch.device | None, device_map: Any, quantization_config: Any) -> "Placement":
        """What a user asked for; the first GPU where there is one, else the CPU, by default.

        Raises:
            InputError: a device that cannot be used, two answers to one question, or an unknown device map.
            UnsupportedModelError: weights that are brought from the disk or the CPU for each pass.
        """
        if device_map is None:
            if quantization_config is not None:
                # Quantised weights are made where they stay.
                return Placement(None, {"": str(usable(device))}, quantization_config)
            return Placement(usable(device))
        if device is not None:
            raise InputError("device and device_map both say where to put the model: expected one of them")
        if isinstance(device_map, dict):
            kinds = {_kind(place) for place in device_map.values()}
            if kinds & {"disk", "meta"} or ("cpu" in kinds and len(kinds) > 1):
                raise UnsupportedModelError(
                    f"device_map brings weights from elsewhere for each pass ({', '.join(sorted(kinds))}), and hooks "
                    f"and readouts of a TransformerBridge read them where they lie: expected GPUs alone, or the CPU"
                )
            for place in device_map.values():
                usable(f"cuda:{place}" if isinstance(place, int) else place)
        elif device_map not in _SPREADS:
            raise InputError(f"unknown device_map {device_map!r}: expected one of {', '.join(_SPREADS)}, or a dict")
        return Placement(None, device_map, quantization_config)

    @property
    def on_cpu(self) -> bool:
        """Whether no accelerator holds any of it."""
        if self.device is not None:
            return self.device.type == "cpu"
        if isinstance(self.device_map, dict):
            return {_kind(place) for place in self.device_map.values()} == {"cpu"}
        return not torch.accelerator.is_available()

    @property
    def options(self) -> dict[str, Any]:
        """What Hugging Face's `from_pretrained` is told of it."""
        given = {"device_map": self.device_map, "quantization_config": self.quantization_config}
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


def _kind(place: Any) -> str:
    """What sort of place a value of a device map is."""
    return "cuda" if isinstance(place, int) else str(place).split(":")[0]
