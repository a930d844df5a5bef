"""The linear edit of an activation in as few steps as there can be, without gradients (docs/method.md 3.6).

A step costs more than its arithmetic where a model reads one token at a time, and on an accelerator. Tensors only.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from .._support.saturation import saturate
from .arithmetic import LOW, ThinProducts, are_moderate, length

# Rows that are looked at one by one.
_FEW = 32


def edit_few(
    x: Float[Tensor, "*batch d"], products: ThinProducts, strength: float | int
) -> Float[Tensor, "*batch d"] | None:
    """The linear way of `edit_activation` for one unit in as few steps as there can be, the same up to rounding.

    Returns:
        None where this way is not open: with gradients, on another device than a CPU or a CUDA device, and on a CPU for
        vectors that have to be scaled or may vanish.
    """
    # The end of what follows needs buffers that nobody else will look at.
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or abs(strength) > 2**30:
        return None
    rows = x.reshape(-1, x.shape[-1])
    if x.is_cuda:
        return edit_unseen(rows, products, strength).view(x.shape)
    if not x.is_cpu:
        return None
    y = products.of_rows(rows)
    try:
        ratio = _ratio(rows, y, products.rounding)
    except RuntimeError:
        # Inside torch.func.vmap there are no numbers to look at.
        return None
    if ratio is None:
        return None
    y.mul_(ratio)
    if strength != 1:
        y.sub_(rows).mul_(strength).add_(rows)
    return y.view(x.shape)


def _ratio(rows: Float[Tensor, "n d"], y: Float[Tensor, "n d"], rounding: float) -> Float[Tensor, "n 1"] | float | None:
    """How much longer than y the rows are; None where one has to be scaled, or may be projected away."""
    # Twice what counts as projected away, since that is not seen exactly.
    least = 2 * rounding
    if len(rows) == 1 and unpack_dual(y).tangent is None:
        # With a number in place of a tensor of one, a model that reads a token at a time spends less here. A derivative
        # taken forwards, which is recorded without gradients too, would be lost with it.
        squared, edited = (torch.dot(one, one).item() for one in (rows.reshape(-1), y.reshape(-1)))
        usual = 2**-60 <= squared <= 2**60 and edited > least**2 * squared
        return math.sqrt(squared / edited) if usual else None
    x_norm = length(rows)
    ratio = x_norm / length(y)
    if len(rows) <= _FEW:
        # Two lists take less time than the smallest and the largest of a tensor.
        norms, ratios = x_norm.flatten().tolist(), ratio.flatten().tolist()
        usual = all(2**-30 <= norm <= 2**30 for norm in norms) and all(one < 1 / least for one in ratios)
        return ratio if usual else None
    return ratio if are_moderate(x_norm, 1) and ratio.max().item() < 1 / least else None


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
