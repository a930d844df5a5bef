"""The final readout (residual stream → final norm → unembedding), and how heads write to the residual."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, reduce
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UnsupportedModelError
from .lens import FINAL_NORM, Lens
from .unembedding import Unembedding


@dataclass(frozen=True)
class Norm:
    """A LayerNorm or RMSNorm taken apart: output = (x − mean(x) if it centres else x) / scale · gain + bias.

    Attributes:
        gain, bias: the affine part; the bias is zero for RMSNorm.
        centres: whether the mean over d_model is subtracted (LayerNorm) or not (RMSNorm).
        is_identity: whether there is no norm at all, so that the output is x, whatever the scale.
    """

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centres: bool
    is_identity: bool = False

    def apply_linearly(
        self, x: Float[Tensor, "*batch d_model"], scale: Float[Tensor, "... 1"]
    ) -> Float[Tensor, "*batch d_model"]:
        """What a part x of the input contributes to the output, given the scale of the whole; without the bias."""
        if self.is_identity:
            return x
        centred = x - reduce(x, "... d_model -> ... 1", "mean") if self.centres else x
        return centred / scale * self.gain


def probe_norm(lens: Lens, path: str) -> Norm:
    """Gain, bias and centring of a norm, found by calling it alone, since a Gemma's weight is not its gain.

    Two opposite inputs have opposite normalized activations n and −n, so that the outputs n · gain + bias and
    −n · gain + bias give bias and gain; a norm that centres normalises a constant vector to zero. A model that was
    built without norms (`normalization_type=None`) has the identity for its final norm.

    Args:
        lens: the model.
        path: the norm's module, such as "ln_final" or "blocks.0.ln1_post".

    Raises:
        UnsupportedModelError: it has no such norm, or one without a `hook_normalized`.
    """
    if path == FINAL_NORM and not lens.has_final_norm:
        one = torch.ones(lens.d_model, dtype=torch.float64, device=lens.device)
        return Norm(one, torch.zeros_like(one), centres=False, is_identity=True)
    module: Any = lens.model
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part, None)
        if module is None:
            raise UnsupportedModelError(f"model {lens.name!r} has no norm {path!r} to take apart")
    point = lens.norm_output(path)
    if not lens.has_point(point):
        raise UnsupportedModelError(f"model {lens.name!r} has no hook point {point!r}: its norm cannot be taken apart")
    # Entries far from 0 and from their mean, whatever the width, so that dividing by n is safe.
    layer = int(path.split(".")[1]) if path.startswith("blocks.") else None
    device = lens.device if layer is None else lens.layer_device(layer)
    alternating = 1.0 - 2.0 * (torch.arange(lens.d_model, device=device) % 2)
    inputs = [alternating, -alternating, torch.ones_like(alternating)]
    normalized: list[Tensor] = []
    outputs = []
    within = contextlib.nullcontext() if layer is None else lens.weights(layer)
    with torch.no_grad(), within, lens.hooks([(point, lambda x: normalized.append(x.detach()))]):
        for x in inputs:
            outputs.append(module(x.to(lens.dtype)[None, None])[0, 0].double())
    n = normalized[0][0, 0].double()
    bias = (outputs[0] + outputs[1]) / 2
    gain = (outputs[0] - outputs[1]) / (2 * n)
    centres = normalized[2].abs().max() < 1e-3 * normalized[0].abs().max()
    return Norm(gain.to(lens.device), bias.to(lens.device), centres=bool(centres))


def head_outputs(
    lens: Lens, layer: int, z: Float[Tensor, "*batch heads d_head"]
) -> Float[Tensor, "*batch heads d_model"]:
    """What each head writes: its z through its block of W_O, float64, before any norm after attention."""
    weight = lens.attention_weight(layer).double()
    return einsum(z.double(), weight, "... heads d_head, heads d_head d_model -> ... heads d_model")


def attention_bias(lens: Lens, layer: int) -> Float[Tensor, " d_model"]:
    """b_O of a layer, float64; zeros for a model that has none."""
    bias = lens.attention_bias(layer)
    return torch.zeros(lens.d_model, dtype=torch.float64, device=lens.device) if bias is None else bias.double()


@dataclass(frozen=True)
class LogitReadout:
    """Logits of a few tokens from a residual stream whose final norm's scale is known, in float64.

    Given its scale the final norm is linear, so that logits split over the parts of the stream (docs/method.md 9.1).

    Attributes:
        norm: the final norm.
        unembedding: makes logits of what the norm gives.
        lens: the model.
    """

    norm: Norm
    unembedding: Unembedding
    lens: Lens

    @classmethod
    def of(cls, lens: Lens) -> "LogitReadout":
        """The readout of a model; raises as `probe_norm`."""
        return cls(probe_norm(lens, FINAL_NORM), Unembedding.own(lens), lens)

    @property
    def scale_point(self) -> str | None:
        """Hook point of the final norm's scale, None for a model without one."""
        return None if self.norm.is_identity else self.lens.norm_scale(FINAL_NORM)

    def columns(self, tokens: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d_model"]:
        """What the norm's output is multiplied by for the logits of some tokens, on the last axis."""
        return self.unembedding.rows(tokens).to(self.lens.device)

    def changes(self, step: Float[Tensor, " d_model"]) -> Float[Tensor, " d_vocab"]:
        """What a step of the residual stream changes in all logits, before the soft cap; for a norm's scale of 1."""
        read = self.norm.apply_linearly(step, torch.ones_like(step[:1]))
        weight = self.unembedding.weight
        return (weight @ read.to(weight)).float() * self.unembedding.scale

    def logits(
        self, x: Float[Tensor, "batch d_model"], scale: Float[Tensor, "batch 1"], tokens: Int[Tensor, "batch n"]
    ) -> Float[Tensor, "batch n"]:
        """The logits of each row's tokens, behind the soft cap."""
        return self.unembedding.exactly(self.norm.apply_linearly(x, scale) + self.norm.bias, tokens)


@dataclass(frozen=True)
class EarlyExit:
    """Logits of a residual stream as if the model ended there: final norm and unembedding.

    A call runs none of the model's own modules, so that hooks on them see the model's own pass alone.

    Attributes:
        norm: the final norm.
        epsilon: what the norm adds to the variance.
        unembedding: makes logits of what the norm gives.
    """

    norm: Norm
    epsilon: float
    unembedding: Unembedding

    @classmethod
    def of(cls, lens: Lens) -> "EarlyExit":
        """The readout of a model.

        Raises:
            UnsupportedModelError: its final norm cannot be taken apart.
        """
        norm, unembedding = probe_norm(lens, FINAL_NORM), Unembedding.own(lens)
        if norm.is_identity:
            return cls(norm, 0.0, unembedding)
        point = lens.norm_scale(FINAL_NORM)
        if not lens.has_point(point):
            raise UnsupportedModelError(f"model {lens.name!r} has no hook point {point!r}: its norm cannot be rebuilt")
        # The scale of an activation that is zero is the root of epsilon.
        scales: list[Tensor] = []
        with torch.no_grad(), lens.hooks([(point, lambda x: scales.append(x.detach()))]):
            device = lens.layer_device(lens.n_layers - 1)
            lens.model.ln_final(torch.zeros(1, 1, lens.d_model, device=device, dtype=lens.dtype))
        epsilon = scales[0].double().square().max().item()
        return cls(norm, epsilon, unembedding)

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """Logits in float32 at least; the unembedding is done in the model's own dtype, as the model does it."""
        weight = self.unembedding.weight
        wide = x.to(device=weight.device, dtype=torch.promote_types(x.dtype, torch.float32))
        normed = wide if self.norm.is_identity else self._normed(wide)
        logits = self.unembedding.block(normed.reshape(-1, normed.shape[-1]), 0, len(weight))
        return logits.reshape(*x.shape[:-1], len(weight)).to(wide.dtype)

    def _normed(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        centred = x - reduce(x, "... d_model -> ... 1", "mean") if self.norm.centres else x
        scale = (reduce(centred.square(), "... d_model -> ... 1", "mean") + self.epsilon).sqrt()
        return centred / scale * self.norm.gain.to(x) + self.norm.bias.to(x)
