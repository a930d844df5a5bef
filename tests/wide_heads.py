"""A Llama with narrow heads as one with wide heads that computes the same: vLLM's CPU attention has none below 32.

Pair i of a head of width w turns by θ^(−2i/w) per position. In a head r times as wide pair r·i turns by as much, so
that the coordinates of pair i go there and all others are 0. Scores are divided by the root of the width, so that
queries grow by the root of r.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM


def with_wide_heads(folder: Path | str, out: Path, width: int = 32) -> Path:
    """Write the same model with heads of this width, a multiple of its own."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = model.config
    own = config.hidden_size // config.num_attention_heads
    times = width // own
    wide = LlamaForCausalLM(LlamaConfig.from_dict({**config.to_dict(), "head_dim": width})).eval()
    pairs = torch.arange(own // 2)
    places = torch.cat([times * pairs, times * pairs + width // 2])

    def padded(weight: torch.Tensor, heads: int, factor: float = 1.0) -> torch.Tensor:
        found = weight.new_zeros(heads, width, weight.shape[-1])
        found[:, places] = factor * weight.reshape(heads, own, -1)
        return found.reshape(heads * width, -1)

    state = model.state_dict()
    for name, weight in list(state.items()):
        if "q_proj" in name:
            state[name] = padded(weight, config.num_attention_heads, times**0.5)
        elif "k_proj" in name or "v_proj" in name:
            state[name] = padded(weight, config.num_key_value_heads)
        elif "o_proj" in name:
            state[name] = padded(weight.T, config.num_attention_heads).T.contiguous()
    wide.load_state_dict(state)
    wide.generation_config = model.generation_config
    wide.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    return out
