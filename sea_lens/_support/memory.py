"""Whether an error says that memory ran out."""

import torch

_SAID = ("out of memory", "not enough memory", "can't allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on an accelerator or in the machine."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    # Torch has no class of its own for what the machine's memory does not hold, nor has every accelerator.
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAID)


def release(device: torch.device) -> None:
    """Give memory that an accelerator keeps for later back to it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
