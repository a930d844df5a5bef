"""Sizes, weights, norms and the readout of a TransformerLens model, by what every backend calls them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .hook_points import HookPoints
from .offload import Offloaded, brought, offloaded

FINAL_NORM = "ln_final"
# Architectures whose blocks norm what attention and the MLP give, and not what they read.
_NORMS_BEHIND_ALONE = ("Olmo2ForCausalLM", "Olmo3ForCausalLM")


class Parts:
    """What a model is made of.

    Attributes:
        model: the TransformerLens model itself.
        points: its hook points by name.
    """

    model: Any
    points: HookPoints

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return int(self.model.cfg.n_layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.model.cfg.d_model)

    @property
    def n_heads(self) -> int:
        """Query heads per block."""
        return int(self.model.cfg.n_heads)

    @property
    def d_head(self) -> int:
        """Width of a head's `z`."""
        return int(self.model.cfg.d_head)

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return int(self.model.cfg.d_vocab)

    @property
    def device(self) -> torch.device:
        """Where the model's first parameter lies: tokens go in and logits come out there, and readings are kept."""
        placed = (parameter.device for parameter in self.model.parameters() if not parameter.is_meta)
        # A model that has no numbers at all is planned with (`planning`).
        return next(placed, torch.device("meta"))

    def layer_device(self, layer: int) -> torch.device:
        """Where a layer runs, and so its activations lie: a model may be spread over several devices."""
        found = self.offloaded(layer)
        return next(self.points.blocks[layer].parameters()).device if found is None else found.device

    def offloaded(self, layer: int) -> Offloaded | None:
        """How a layer's weights are brought for each pass, None where they stay."""
        return offloaded(self.points.blocks[layer])

    def weights(self, layer: int) -> contextlib.AbstractContextManager[None]:
        """For the length of a context, a layer's weights are in its block whatever becomes of them between passes."""
        return brought(self.points.blocks[layer])

    def all_weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights by name; of those that are brought for each pass, one after the other is read."""
        elsewhere = {}
        for block in self.points.blocks:
            if (found := offloaded(block)) is not None:
                elsewhere |= {id(empty): (found, name) for name, empty in found.empty.items()}
        for name, weight in self.model.named_parameters():
            found, own = elsewhere.get(id(weight), (None, ""))
            yield name, weight if found is None else found.value(own)

    @property
    def double_device(self) -> torch.device:
        """Where sums in float64 are kept: with the model, but on the CPU beside Apple's GPUs, which have no float64."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model's first parameter."""
        return next(self.model.parameters()).dtype

    @staticmethod
    def norm_scale(path: str) -> str:
        """Hook point of the scale of a norm, `FINAL_NORM` or one of `norm_behind`."""
        return f"{path}.hook_scale"

    def block_norm_scales(self, layer: int) -> list[str]:
        """Hook points of the scales of the norms in front of a block's attention and MLP, and behind them."""
        norms = (f"blocks.{layer}.{name}" for name in ("ln1", "ln1_post", "ln2", "ln2_post"))
        return [point for norm in norms if (point := self.norm_scale(norm)) in self.points]

    @staticmethod
    def norm_output(path: str) -> str:
        """Hook point of what a norm has normalised, before its gain and bias."""
        return f"{path}.hook_normalized"

    def norm_behind(self, site: str, layer: int) -> str | None:
        """Path of the norm between the output of a site's module and the site (Gemma 2, OLMo 2, GLM 4), or None."""
        norms = {"attn_out": ("ln1_post", "ln1"), "mlp_out": ("ln2_post", "ln2")}.get(site)
        if norms is None:
            return None
        behind, only = (f"blocks.{layer}.{norm}" for norm in norms)
        if self.norm_output(behind) in self.points:
            return behind
        # Where a block has no norm in front of the module, the one behind it has its name: the bridge calls its output
        # the site, and a HookedTransformer tells by the architecture.
        output = self.points.get(f"{only}.hook_out")
        moved = output is not None and output is self.points.get(f"blocks.{layer}.hook_{site}")
        alone = moved or getattr(self.model.cfg, "original_architecture", None) in _NORMS_BEHIND_ALONE
        return only if alone else None

    @property
    def norms_behind(self) -> list[str]:
        """The sites that a norm of some layer stands in front of."""
        sites = ("mlp_out", "attn_out")
        return [site for site in sites if any(self.norm_behind(site, layer) for layer in range(self.n_layers))]

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm stands between the residual stream and the unembedding; not in a model built without any."""
        return hasattr(self.model, FINAL_NORM) or getattr(self.model.cfg, "normalization_type", "") is not None

    @property
    def unembedding(self) -> Float[Tensor, "d_model d_vocab"]:
        """W_U."""
        return self.model.W_U.detach()

    @property
    def unembedding_bias(self) -> Float[Tensor, " d_vocab"] | None:
        """b_U, None for a model that has none."""
        bias = getattr(self.model, "b_U", None)
        return bias.detach() if isinstance(bias, Tensor) else None

    @property
    def soft_cap(self) -> float | None:
        """The cap c of logits c · tanh(raw / c), None where there is none."""
        cap = float(getattr(self.model.cfg, "output_logits_soft_cap", 0.0) or 0.0)
        return cap if cap > 0 else None

    def attention_weight(self, layer: int) -> Float[Tensor, "heads d_head d_model"]:
        """W_O of a layer, by query head, times what its block multiplies attention by."""
        attention = self.points.blocks[layer].attn
        try:
            with self.weights(layer):
                weight = attention.W_O.detach()
        # Weights in few bits cannot be read; what they do to each unit can.
        except NotImplementedError:
            units = torch.eye(self.n_heads * self.d_head, dtype=self.dtype, device=self.layer_device(layer))
            project = attention.o.original_component
            with torch.no_grad():
                written = project(units) - project(torch.zeros_like(units[:1]))
            weight = rearrange(written, "(heads d_head) d_model -> heads d_head d_model", heads=self.n_heads)
        return weight.to(self.device) * self._contribution_scale(layer)

    def attention_bias(self, layer: int) -> Float[Tensor, " d_model"] | None:
        """b_O of a layer, times what its block multiplies attention by; None for a model that has none."""
        # A bridge raises TypeError or AttributeError, by version, where there is no bias.
        try:
            with self.weights(layer):
                bias = self.points.blocks[layer].attn.b_O
        except (AttributeError, TypeError):
            bias = None
        return bias.detach().to(self.device) * self._contribution_scale(layer) if isinstance(bias, Tensor) else None

    def _contribution_scale(self, layer: int) -> float:
        # What Granite's blocks multiply by before they add; the hook points of what is added lie behind it.
        return float(getattr(self.points.blocks[layer], "residual_contribution_scale", 1.0))
