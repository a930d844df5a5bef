"""Whether a model's passes are random."""

from typing import Any

import torch


def active_dropout(model: Any) -> str | None:
    """The first part of a model that is in training mode and drops at random, by its kind; None where there is none."""
    for whole in (model, getattr(model, "original_model", None)):
        if isinstance(whole, torch.nn.Module):
            for module in whole.modules():
                if module.training and _drops(module):
                    return type(module).__name__
    return None


def _drops(module: torch.nn.Module) -> bool:
    if isinstance(module, torch.nn.modules.dropout._DropoutNd):
        return module.p > 0
    # Hugging Face's attention hands a probability of its own to dropout as a function; `layerdrop` leaves out layers.
    return any("drop" in name and type(value) in (int, float) and value > 0 for name, value in vars(module).items())
