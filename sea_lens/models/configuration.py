"""What the configuration of a Hugging Face model says of long texts, which a short one cannot show.

A HookedTransformer is made from a configuration of its own, written by hand for each architecture; a TransformerBridge
runs the modules of the Hugging Face model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Names of the longest text, in the order in which transformers' own classes mean them.
_CONTEXT = ("max_seq_len", "n_positions", "max_position_embeddings", "n_ctx", "seq_length", "max_sequence_length")
_FREQUENCIES = "inv_freq"


def text_config(config: Any) -> Any:
    """The part of a configuration that the language model goes by."""
    return getattr(config, "text_config", None) or config


def context_length(config: Any) -> int | None:
    """The longest text that is read as a configuration says, in tokens; None where it names no longest one.

    Rotary frequencies of type "longrope" are others for texts beyond an original length, and then for every token of
    the batch that holds such a text: earlier logits would depend on later tokens, and on the texts read beside them.
    The context ends at that length. Those of type "dynamic" change beyond the context alone.
    """
    config = text_config(config)
    named = (getattr(config, name, None) for name in _CONTEXT)
    longest = next((value for value in named if type(value) is int and value > 0), None)
    return min((length for length in (longest, _original_length(config)) if length is not None), default=None)


def _original_length(config: Any) -> int | None:
    given = getattr(config, "rope_parameters", None) or {}
    for one in (given, *(part for part in given.values() if isinstance(part, Mapping))):
        if one.get("rope_type") == "longrope":
            name = "original_max_position_embeddings"
            return one.get(name) or getattr(config, name, None)
    return None


def windows(config: Any, n_layers: int) -> list[int | None]:
    """How many tokens attention sees in each layer, the newest included; None where it sees all."""
    config = text_config(config)
    width = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        width = None
    kinds = getattr(config, "layer_types", None)
    if kinds is None and (kinds := getattr(config, "attention_layers", None)) is not None:
        width = getattr(config, "window_size", None)
    if not isinstance(width, int):
        return [None] * n_layers
    if kinds is None:
        return [width] * n_layers
    return [width if kind in ("sliding_attention", "local") else None for kind in kinds]


@dataclass(frozen=True)
class Rotation:
    """Rotary frequencies, in radians per position, and what rotated queries and keys are multiplied with."""

    frequencies: Float[Tensor, " pairs"]
    scale: float


def rotations(hf_model: Any) -> list[Rotation]:
    """The different rotations of a Hugging Face model; empty where it has no module that holds any."""
    found: dict[str, Rotation] = {}
    for module in hf_model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            # Models whose layers rotate differently have one set of frequencies for each type of layer.
            if name.endswith(_FREQUENCIES) and not name.startswith("original"):
                kind = name.removesuffix(_FREQUENCIES)
                scale = float(getattr(module, f"{kind}attention_scaling", None) or 1.0)
                found.setdefault(f"{kind} {buffer.tolist()}", Rotation(buffer.detach().double().cpu(), scale))
    return list(found.values())


def hooked_windows(model: Any) -> list[int | None]:
    """`windows` of a HookedTransformer."""
    local = [getattr(block.attn, "attn_type", "global") == "local" for block in model.blocks]
    return [model.cfg.window_size if is_local else None for is_local in local]


def hooked_rotation(model: Any, layer: int) -> Rotation | None:
    """The rotation of a layer of a HookedTransformer, read off its table at position 1; None where it has none."""
    attention = model.blocks[layer].attn
    if not hasattr(attention, "rotary_sin"):
        return None
    local = model.cfg.rotary_base_local if attention.attn_type == "local" else None
    # Made anew, since the table itself is in the model's dtype.
    sine, cosine = attention.calculate_sin_cos_rotary(
        model.cfg.rotary_dim, 2, base=local or model.cfg.rotary_base, dtype=torch.float32
    )
    sine, cosine = sine[1].double(), cosine[1].double()
    return Rotation(torch.atan2(sine, cosine).unique(), float((sine.square() + cosine.square()).sqrt().mean()))


def rotation_deviation(model: Any, expected: list[Rotation]) -> float:
    """Largest relative difference between the frequencies of a HookedTransformer and the nearest that are expected."""
    worst = 0.0
    for layer in range(len(model.blocks)):
        found = hooked_rotation(model, layer)
        if found is not None and expected:
            worst = max(worst, min(_difference(found, one) for one in expected))
    return worst


def _difference(found: Rotation, expected: Rotation) -> float:
    wanted = expected.frequencies.unique()
    if len(found.frequencies) != len(wanted):
        return float("inf")
    relative = (found.frequencies - wanted).abs() / wanted
    return max(relative.max().item(), abs(found.scale / expected.scale - 1))
