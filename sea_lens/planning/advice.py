"""Which option would make a step fit that does not."""

import math
from collections.abc import Callable

import torch

from .plans import Plan, Step
from .quantities import shown

# Bytes that a number of quantised weights takes, and their name; embeddings stay as they are, which is little.
_BITS = {8: 1.0, 4: 0.5}


def advised(plan: Plan, step: Step, recounted: Callable[[str, int], Step], batch_size: int) -> str:
    """What to change, the least first; nothing where the step fits.

    Args:
        plan: that the step is one of.
        step: which.
        recounted: the step of a name, planned anew for a batch size.
        batch_size: as planned.
    """
    held = plan.held(step)
    if held <= plan.limit:
        return ""
    weights = next(part.bytes for part in step.parts if part.name == "weights")
    if weights > plan.limit:
        return _for_weights(plan, weights, held)
    if step.name == "fit":
        return "capture(store=) and a fit of the store read one layer at a time; see 'fit, store'"
    if step.name == "fit, store":
        return f"fit the store in a process that has not loaded the model: {shown(held - weights)}"
    if step.name == "capture" and held - _bytes(step, "sums", "activations", "adding up") <= plan.limit:
        return "capture(store=) keeps what is read in files; see 'capture, store'"
    smaller = batch_size // 2
    while smaller >= 1 and step.forward:
        if plan.held(recounted(step.name, smaller)) <= plan.limit:
            return f"batch_size={smaller}"
        smaller //= 4 if smaller >= 4 else 2
    return (
        _for_weights(plan, weights, held)
        if not step.backward
        else f"layers='last-1' or so; else {_for_weights(plan, weights, held)}"
    )


def _for_weights(plan: Plan, weights: int, held: int) -> str:
    """For weights that leave no room, in a step that holds so much."""
    itemsize = getattr(torch, plan.model["dtype"]).itemsize
    half = weights * 2 // itemsize
    if itemsize > 2 and half <= plan.limit:
        return f"dtype='bfloat16': weights of {shown(half)}"
    if plan.on_cpu:
        return "device_map={'': 'disk'} brings a block of weights at a time"
    count = math.ceil(1.2 * (held - weights + half) / plan.limit)
    told = f"device_map='auto' over {count} such GPUs (dtype='bfloat16')"
    for bits, size in _BITS.items():
        if (quantised := int(plan.model["parameters"] * size)) < 0.9 * plan.limit:
            return f"{told}, or quantization_config for {bits} bits: weights of about {shown(quantised)}"
    return told


def _bytes(step: Step, *names: str) -> int:
    return sum(part.bytes for part in step.parts if part.name in names)
