"""What has been done to a model's weights that leaves its predictions alone but not its activations.

TransformerLens can fold the gains of norms into the weights behind them, centre what is written to the residual stream,
centre the unembedding, move value biases into output biases, and turn the axes of each head. An edit that was fitted
before is wrong after.
"""

from typing import Any

import torch
from torch import Tensor

from .offload import brought

# Rows of a weight that are looked at, and how far from zero a mean of centred numbers may be, relative to their size.
_ROWS = 16
_CENTRED = 1e-4
FOLDED, WRITING, UNEMBEDDING, VALUES, FACTORED = (
    "layer norms folded",
    "writing weights centred",
    "unembedding centred",
    "value biases folded",
    "attention matrices factored anew",
)


def processing(model: Any) -> list[str]:
    """What has been done to the weights, as measured on them; empty for weights as trained."""
    tests = (
        (FOLDED, _norms_folded),
        (WRITING, _writing_centred),
        (UNEMBEDDING, unembedding_centred),
        (VALUES, _value_biases_folded),
        (FACTORED, _factored),
    )
    with brought(model.blocks[0]):
        return [name for name, test in tests if test(model)]


def _norms_folded(model: Any) -> bool:
    kind = getattr(model.cfg, "normalization_type", None)
    if not hasattr(model, "original_model"):
        return isinstance(kind, str) and kind.endswith("Pre")
    # A gain of one alone would also be that of an untrained model; a Gemma's weight is its gain less one.
    weight = _tensor(model, "blocks.0.ln1.weight")
    neutral = weight is not None and any(bool((weight == gain).all()) for gain in (0, 1))
    return neutral and bool(vars(model).get("_weights_processed", True))


def _writing_centred(model: Any) -> bool:
    weight = _tensor(model, "blocks.0.attn.W_O")
    return weight is not None and _mean_is_zero(weight.reshape(-1, weight.shape[-1])[:_ROWS])


def unembedding_centred(model: Any) -> bool:
    """Whether the logits of each token have mean zero by the weights."""
    weight = _tensor(model, "W_U")
    return weight is not None and _mean_is_zero(weight[:_ROWS])


def _value_biases_folded(model: Any) -> bool:
    """Value biases are zero where those of queries or keys are not."""
    value, *others = (_tensor(model, f"blocks.0.attn.{name}") for name in ("b_V", "b_Q", "b_K"))
    return value is not None and not value.any() and any(one is not None and bool(one.any()) for one in others)


def _factored(model: Any) -> bool:
    """What each head writes with has orthonormal rows, which no training leaves behind."""
    weight = _tensor(model, "blocks.0.attn.W_O")
    if weight is None or weight.ndim != 3:
        return False
    head = weight[0].detach().double()
    return bool((head @ head.mT - torch.eye(len(head)).to(head)).abs().max() < 64 * torch.finfo(weight.dtype).eps)


def _mean_is_zero(rows: Tensor) -> bool:
    rows = rows.detach().double()
    size = rows.square().mean().sqrt()
    # The mean of random numbers that are not centred is this much of their size.
    typical = rows.shape[-1] ** -0.5
    mean = rows.mean(-1).square().mean().sqrt()
    return bool(size > 0) and bool(mean < size * typical * max(_CENTRED, 64 * _epsilon(rows, size)))


def _epsilon(rows: Tensor, size: Tensor) -> float:
    """Rounding of the weights' own dtype, read off the numbers: how coarse they are relative to their size."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(rows, rows.to(dtype).double()):
            return torch.finfo(dtype).eps
    return torch.finfo(torch.float32).eps


def _tensor(model: Any, path: str) -> Tensor | None:
    for part in path.split("."):
        # A bridge raises TypeError, AttributeError or RuntimeError where a model has no such weight.
        try:
            model = model[int(part)] if part.isdigit() else getattr(model, part)
        except (AttributeError, TypeError, RuntimeError, IndexError, KeyError, NotImplementedError, ValueError):
            return None
    return model if isinstance(model, Tensor) else None
