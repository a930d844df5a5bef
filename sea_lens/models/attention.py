"""Attention of a bridge by torch's `scaled_dot_product_attention`, wherever nobody asks for a pattern.

A bridge computes scores and patterns of the common families itself, so that hooks see them, and never calls the
attention of the Hugging Face model. That one uses torch's fused kernels, which hold no pattern at all: twice to three
times as fast on texts of a thousand tokens, with memory that grows with the length and not with its square. Queries,
keys, values and z are hooked within either.
"""

from typing import Any

from .cached_pass import attentions, give_under_old_name
from .configuration import text_config

ATTENTIONS = ("auto", "sdpa", "eager")


def fuse(bridge: Any) -> str | None:
    """Let each attention layer run its Hugging Face attention, unless a hook asks for what that does not hold.

    Returns:
        Why it cannot be, and None where it is done.
    """
    if (why := _why_not(bridge)) is not None:
        return why
    # A model without it is met with whatever transformers raises first.
    try:
        bridge.original_model.set_attn_implementation("sdpa")
    except Exception as error:
        return str(error).splitlines()[0]
    for layer in attentions(bridge):
        # Past the module's __setattr__.
        vars(layer)["forward"] = _Attention(layer)
    return None


def unfuse(bridge: Any) -> None:
    """Undo `fuse`."""
    bridge.original_model.set_attn_implementation("eager")
    for layer in attentions(bridge):
        vars(layer).pop("forward", None)


def _why_not(bridge: Any) -> str | None:
    """Why a bridge's attention must be computed with patterns, None where it need not."""
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    config = text_config(bridge.original_model.config)
    if any("softcap" in name and "attn" in name and value is not None for name, value in vars(config).items()):
        return "it caps attention scores, which torch's fused kernels do not"
    layers = attentions(bridge)
    if len(layers) != bridge.cfg.n_layers:
        return "not every block has attention"
    for layer in layers:
        original = getattr(layer, "original_component", None)
        inner = [] if original is None else list(original.children())
        parts = [getattr(layer, name, None) for name in ("q", "k", "v", "o")]
        if not isinstance(layer, AttentionBridge) or not all(any(part is one for one in inner) for part in parts):
            return "hooks of queries, keys, values and z do not stand within its Hugging Face attention"
        # Such a layer gives its hooks whatever pattern Hugging Face returns.
        if type(layer).forward is AttentionBridge.forward:
            return "TransformerLens reads its patterns off its Hugging Face attention"
    return None


class _Attention:
    """Stands in for `forward` of one attention layer of a bridge."""

    def __init__(self, layer: Any) -> None:
        from transformer_lens.hook_points import HookPoint

        self._layer = layer
        # What a bridge computes and the Hugging Face attention does not hand out: scores, pattern, rotated queries, …
        self._points = [
            point
            for name, point in layer.named_children()
            if isinstance(point, HookPoint) and name not in ("hook_in", "hook_out")
        ]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What is called in place of the layer's `forward`."""
        from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

        layer = self._layer
        if self._is_asked():
            args, kwargs = give_under_old_name(layer, args, kwargs) or (args, kwargs)
            return type(layer).forward(layer, *args, **kwargs)
        return AttentionBridge.forward(layer, *args, **kwargs)

    def _is_asked(self) -> bool:
        layer = self._layer
        options = ("use_attn_result", "use_split_qkv_input", "use_attn_in")
        return (
            bool(getattr(layer, "compatibility_mode", False))
            or any(getattr(layer.config, name, False) for name in options)
            or any(point._forward_hooks or point._backward_hooks or point.bwd_hooks for point in self._points)
        )
