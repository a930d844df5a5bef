"""The linear edit of an activation in as few steps as there can be, without gradients (docs/method.md 3.6).

A step costs more than its arithmetic where a model reads one token at a time, and on an accelerator. Tensors only.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .._support.saturation import saturate
from .arithmetic import LOW, ThinProducts, are_moderate, length

# Vectors up to which numpy is faster.
_FEW = 8


def edit_few(
    x: Float[Tensor, "*batch d"], products: ThinProducts, strength: float | int
) -> Float[Tensor, "*batch d"] | None:
    """The linear way of `edit_activation` for one unit in as few steps as there can be, the same up to rounding.

    Returns:
        None where this way is not open: with gradients, on another device than a CPU or a CUDA device, and on a CPU for
        vectors that have to be scaled or may vanish.
    """
    # The end of what follows needs buffers that nobody else will look at.
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or len(products.down) != 1:
        return None
    place = x.device.type
    if place == "cpu" and x.numel() <= _FEW * x.shape[-1]:
        return _edit_in_numpy(x, products, strength)
    rows = x.reshape(-1, x.shape[-1])
    if place == "cuda" and abs(strength) <= 2**30:
        return edit_unseen(rows, products, strength).view(x.shape)
    if place != "cpu":
        return None
    y = products.of_rows(rows)
    x_norm, y_norm = length(rows), length(y)
    try:
        ratio = x_norm / y_norm
        # Twice as long as what counts as projected away, since that is not seen exactly.
        if not are_moderate(x_norm, strength) or not ratio.max().item() < 1 / (2 * products.rounding):
            return None
        y.mul_(ratio)
    except RuntimeError:
        # Inside torch.func.vmap there are no numbers to look at.
        return None
    if strength != 1:
        y.sub_(rows).mul_(strength).add_(rows)
    return y.view(x.shape)


def _edit_in_numpy(
    x: Float[Tensor, "*batch d"], products: ThinProducts, strength: float | int
) -> Float[Tensor, "*batch d"] | None:
    """`edit_few` for so few vectors that steps cost more than arithmetic: in numpy one costs a third of torch's."""
    if products.arrays is None or abs(strength) > 2**30:
        return None
    try:
        rows = x.numpy().reshape(-1, x.shape[-1])
    except RuntimeError:
        # Inside torch.func there is no memory to look at.
        return None
    down, up = products.arrays
    # What is no number or overflows is seen below.
    with np.errstate(all="ignore"):
        y = (rows @ down) @ up
        if products.adds:
            y += rows
        for row, one in zip(rows, y, strict=True):
            size, edited = math.sqrt(row.dot(row)), math.sqrt(one.dot(one))
            if not (2**-30 <= size <= 2**30 and edited > 2 * products.rounding * size):
                return None
            one *= size / edited
    if strength != 1:
        y -= rows
        y *= strength
        y += rows
    return torch.from_numpy(y.reshape(x.shape))


def edit_unseen(
    rows: Float[Tensor, "rows d"], products: ThinProducts, strength: float | int
) -> Float[Tensor, "rows d"]:
    """`edit_few` where looking at a number would mean waiting for the device.

    Products are made `LOW` times as large and norms are summed in float64, in place of a scale for each vector: half
    as many steps, each of which costs more to start than to run. Of vectors shorter than 2⁻⁹⁰ digits are lost.
    """
    coordinates, up = rows @ products.low, products.matrices[1]
    y = torch.addmm(rows, coordinates, up, beta=LOW) if products.adds else coordinates @ up
    x_norm, y_norm = (torch.linalg.vector_norm(v, dim=-1, keepdim=True, dtype=torch.float64) for v in (rows, y))
    # Not a number for the zero vector, which stays as it is as well.
    ratio = x_norm / y_norm
    lives = ratio < 1 / (LOW * products.rounding)
    edited = saturate(torch.where(lives, y.mul_(ratio.to(y.dtype)), rows))
    if strength == 1:
        return edited
    # Half of the difference, since the whole of it may overflow.
    return saturate(torch.add(rows, torch.sub(edited.mul_(0.5), rows, alpha=0.5), alpha=2 * strength))
