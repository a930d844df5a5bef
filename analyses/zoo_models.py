"""The tiny random models of the zoo (`zoo.py`): configurations of many families, and what is odd about each variant."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 512
CONTEXT = 128
# What most configurations call their sizes.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
_BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}
_FALCON = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
_MPT = {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT}
_NEO = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "max_position_embeddings": CONTEXT,
    "attention_types": [[["global", "local"], 1]],
}
_GEMMA = {**_GROUPED, "head_dim": 16}
_GEMMA2 = {**_GEMMA, "query_pre_attn_scalar": 16, "sliding_window": 8}
_EXPERTS = {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
_QWEN_EXPERTS = {
    **_GROUPED,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "decoder_sparse_step": 1,
}


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=32)
_LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
_LONG = _rope(
    "longrope",
    factor=4.0,
    short_factor=[1.0, 1.1, 1.2, 1.3],
    long_factor=[2.0, 3.0, 4.0, 5.0],
    original_max_position_embeddings=32,
)
_DYNAMIC = _rope("dynamic", factor=4.0)

# Model types of transformers with their sizes, and the variants of each by what is odd about them.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "llama": (
        _GROUPED,
        {
            "": {},
            "rope linear": _rope("linear", factor=4.0),
            "rope yarn": _YARN,
            "rope llama3": _LLAMA3,
            "rope dynamic": _DYNAMIC,
            "rope longrope": _LONG,
            "rope theta 500000": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
            "mlp_bias": {"mlp_bias": True},
            "attention_bias": {"attention_bias": True},
            "tied": {"tie_word_embeddings": True},
            "one key head": {"num_key_value_heads": 1},
            "all key heads": {"num_key_value_heads": 4},
            "head_dim 16": {"head_dim": 16},
            "gelu": {"hidden_act": "gelu"},
            "rms_norm_eps 0.1": {"rms_norm_eps": 0.1},
        },
    ),
    "mistral": (
        _GROUPED,
        {
            "": {"sliding_window": None},
            "window 8": {"sliding_window": 8},
            "window 100": {"sliding_window": 100},
            "head_dim 16": {"head_dim": 16, "sliding_window": None},
            "rope yarn": {**_YARN, "sliding_window": None},
        },
    ),
    "mixtral": (_EXPERTS, {"": {}, "window 8": {"sliding_window": 8}}),
    "qwen2": (
        _GROUPED,
        {
            "": {},
            "window 8": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "window 100": {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 0},
            "rope yarn": _YARN,
            "rope theta 12345.5": {"rope_parameters": {"rope_type": "default", "rope_theta": 12345.5}},
        },
    ),
    "qwen3": (
        {**_GROUPED, "head_dim": 16},
        {
            "": {},
            "attention_bias": {"attention_bias": True},
            "rope yarn": _YARN,
            "window 8": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        },
    ),
    "qwen2_moe": (_QWEN_EXPERTS, {"": {}}),
    "qwen3_moe": ({**_QWEN_EXPERTS, "head_dim": 16}, {"": {}, "norm_topk_prob": {"norm_topk_prob": True}}),
    "gemma": (_GEMMA, {"": {}, "one key head": {"num_key_value_heads": 1}, "gelu": {"hidden_act": "gelu"}}),
    "gemma2": (
        _GEMMA2,
        {
            "": {},
            "no caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
            "cap 5": {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0},
            "query scalar 64": {"query_pre_attn_scalar": 64},
            "window 100": {"sliding_window": 100},
        },
    ),
    "gemma3_text": (_GEMMA2, {"": {}, "cap 5": {"final_logit_softcapping": 5.0}}),
    "gpt2": (
        _GPT2,
        {
            "": {},
            "no attention scale": {"scale_attn_weights": False},
            "scale by layer": {"scale_attn_by_inverse_layer_idx": True},
            "n_inner 48": {"n_inner": 48},
            "relu": {"activation_function": "relu"},
            "gelu": {"activation_function": "gelu"},
            "epsilon 0.1": {"layer_norm_epsilon": 0.1},
            "untied": {"tie_word_embeddings": False},
        },
    ),
    "gpt_neo": (_NEO, {"": {}, "window 8": {"window_size": 8}}),
    "gpt_neox": (
        _SIZES,
        {
            "": {"use_parallel_residual": True},
            "sequential": {"use_parallel_residual": False},
            "no attention bias": {"attention_bias": False},
            "rotary 0.5": {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
            },
            "gelu_new": {"hidden_act": "gelu_new"},
        },
    ),
    "gptj": (
        {**_GPT2, "rotary_dim": 4},
        {"": {}, "tied": {"tie_word_embeddings": True}, "gelu": {"activation_function": "gelu"}},
    ),
    "codegen": ({**_GPT2, "rotary_dim": 4}, {"": {}}),
    "gpt_bigcode": (_GPT2, {"": {}, "all key heads": {"multi_query": False}}),
    "opt": (
        _OPT,
        {
            "": {},
            "norm behind": {"do_layer_norm_before": False},
            "no bias": {"enable_bias": False},
            "projected": {"word_embed_proj_dim": 16},
            "gelu": {"activation_function": "gelu"},
        },
    ),
    "bloom": (
        _BLOOM,
        {
            "": {},
            "residual behind norm": {"apply_residual_connection_post_layernorm": True},
            "untied": {"tie_word_embeddings": False},
            "epsilon 0.1": {"layer_norm_epsilon": 0.1},
        },
    ),
    "falcon": (
        _FALCON,
        {
            "": {},
            "alibi": {"alibi": True, "parallel_attn": False},
            "sequential": {"parallel_attn": False},
            "bias": {"bias": True},
            "new architecture": {"new_decoder_architecture": True, "num_kv_heads": 2},
            "all key heads": {"multi_query": False},
        },
    ),
    "mpt": (_MPT, {"": {}, "clipped": {"attn_config": {"clip_qkv": 0.5}}}),
    "phi": (
        _SIZES,
        {
            "": {},
            "qk norm": {"qk_layernorm": True},
            "rotary 0.25": {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
            },
        },
    ),
    "phi3": (
        {**_GROUPED, "pad_token_id": 0},
        {"": {}, "window 8": {"sliding_window": 8}, "rope longrope": {**_LONG, "original_max_position_embeddings": 32}},
    ),
    "olmo": (_GROUPED, {"": {}, "clipped": {"clip_qkv": 0.5}}),
    "olmo2": (_GROUPED, {"": {}}),
    "olmo3": ({**_GROUPED, "sliding_window": 8}, {"": {}}),
    "olmoe": (
        {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
        {"": {}, "norm_topk_prob": {"norm_topk_prob": True}},
    ),
    "stablelm": (
        _GROUPED,
        {
            "": {},
            "parallel": {"use_parallel_residual": True},
            "qkv bias": {"use_qkv_bias": True},
            "qk norm": {"qk_layernorm": True},
        },
    ),
    "starcoder2": (
        _GROUPED,
        {"": {"sliding_window": None}, "window 8": {"sliding_window": 8}, "no bias": {"use_bias": False}},
    ),
    "cohere": (_GROUPED, {"": {}, "logit_scale 0.5": {"logit_scale": 0.5}, "qk norm": {"use_qk_norm": True}}),
    "granite": (
        _GROUPED,
        {
            "": {},
            "multipliers": {
                "embedding_multiplier": 2.0,
                "residual_multiplier": 0.5,
                "attention_multiplier": 0.5,
                "logits_scaling": 3.0,
            },
        },
    ),
    "granitemoe": (_EXPERTS, {"": {}}),
    "nemotron": (_GROUPED, {"": {}}),
    "glm": ({**_GROUPED, "head_dim": 8}, {"": {}}),
    "glm4": ({**_GROUPED, "head_dim": 8}, {"": {}}),
    "exaone4": ({**_GROUPED, "sliding_window": 8, "sliding_window_pattern": 2}, {"": {}}),
    "smollm3": (_GROUPED, {"": {}}),
    "arcee": (_GROUPED, {"": {}}),
    "apertus": (_GROUPED, {"": {}}),
    "helium": ({**_GROUPED, "head_dim": 8}, {"": {}}),
    "seed_oss": ({**_GROUPED, "head_dim": 8}, {"": {}}),
    "ernie4_5": ({**_GROUPED, "head_dim": 8}, {"": {}}),
    "gpt_oss": (
        {**_EXPERTS, "head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        {"": {}},
    ),
    "biogpt": (_SIZES, {"": {}}),
    "xglm": (
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "ffn_dim": 64,
            "num_layers": 2,
            "attention_heads": 4,
            "max_position_embeddings": CONTEXT,
        },
        {"": {}},
    ),
    "openai-gpt": (_GPT2, {"": {}}),
    "bert": (_SIZES, {"": {}, "decoder": {"is_decoder": True}}),
    "mamba": ({"vocab_size": VOCABULARY, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}, {"": {}}),
}


@dataclass(frozen=True)
class Case:
    """One configuration.

    Attributes:
        family: the model type that transformers knows it by.
        variant: what is odd about it, empty where nothing is.
        options: the fields of the configuration.
    """

    family: str
    variant: str
    options: dict[str, Any] = field(hash=False)

    @property
    def name(self) -> str:
        """Family and variant."""
        return f"{self.family} {self.variant}".rstrip()

    def config(self) -> Any:
        """The configuration of transformers."""
        from transformers import AutoConfig

        config = AutoConfig.for_model(self.family, **self.options)
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
        return config

    def huggingface(self) -> Any:
        """The random model, in evaluation mode."""
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(self.config(), attn_implementation="eager")
        with torch.no_grad():
            for parameter in model.parameters():
                # Norms stay near what they are, so that signals stay of the size that they have in trained models.
                parameter.add_(0.3 * torch.randn_like(parameter))
        return model.eval()

    def write(self, folder: Path) -> Path:
        """Save model and tokenizer."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.huggingface().save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return folder


def tokenizer() -> Any:
    """A tokenizer of bytes with BOS, EOS and padding: its 512 tokens are the vocabulary of every model here."""
    from transformers import PreTrainedTokenizerFast

    pieces = ["<pad>", "<s>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [f"<extra{number}>" for number in range(VOCABULARY - len(pieces))]
    made = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


CASES = [
    Case(family, variant, {**sizes, **options})
    for family, (sizes, variants) in FAMILIES.items()
    for variant, options in variants.items()
]
