"""A Hugging Face model as one of TransformerLens's, with its weights as trained."""

import contextlib
import json
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import UnsupportedModelError
from .configuration import context_length
from .huggingface import failures_named
from .offload import made_of_offloaded

# Held while TransformerLens makes a bridge.
_ALONE = threading.RLock()


def as_hooked(name: str, hf_model: Any, tokenizer: Any, dtype: torch.dtype) -> Any:
    """The model as a HookedTransformer, nothing folded or centred.

    Raises:
        UnsupportedModelError: this TransformerLens does not know the model.
    """
    from transformer_lens import HookedTransformer, loading_from_pretrained

    hf_config, device = hf_model.config.to_dict(), hf_model.device
    with failures_named(f"{name} (as HookedTransformer)"), _config_source(name, hf_config) as source:
        cfg = loading_from_pretrained.get_pretrained_model_config(
            source, fold_ln=False, device=str(device), dtype=dtype
        )
        # Some architectures get 2,048 whatever the configuration says.
        cfg.n_ctx = context_length(hf_model.config) or cfg.n_ctx
        if source in _GEMMA_TEMPLATES.values() and source != name:
            cfg = _resized_gemma(cfg, hf_config)
        cfg.model_name = Path(name).name
        # Weights that torch has made and nobody has written to take no memory yet.
        model = HookedTransformer(cfg, tokenizer, move_to_device=False)
        state = loading_from_pretrained.get_pretrained_state_dict(source, cfg, hf_model, dtype=dtype)
        # TransformerLens's own `load_and_process_state_dict` makes a copy of all weights in float32 first.
        model.load_state_dict(_own_weights(model.fill_missing_keys(state), dtype), strict=False, assign=True)
        return model.to(device)


def _own_weights(state: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Weights of which no two are the same memory, so that one can be changed without another.

    They are those of the Hugging Face model itself, seen in the shapes of TransformerLens, wherever they can be.
    """
    taken: set[int] = set()
    own = {}
    for name, given in state.items():
        weight = given.detach()
        if weight.is_floating_point():
            weight = weight.to(dtype)
        repeats = any(size > 1 and step == 0 for size, step in zip(weight.shape, weight.stride(), strict=True))
        # A tied unembedding is the embedding.
        if repeats or (weight.numel() and weight.data_ptr() in taken):
            weight = weight.clone()
        taken.add(weight.data_ptr())
        own[name] = weight
    return own


# TransformerLens 3.9 knows Gemmas by their hub names alone; for a local folder one of them serves as template.
_GEMMA_TEMPLATES = {"GemmaForCausalLM": "google/gemma-2b", "Gemma2ForCausalLM": "google/gemma-2-2b"}


def _resized_gemma(cfg: Any, hf_config: dict[str, Any]) -> Any:
    """A Gemma configuration of TransformerLens's with the sizes of another Gemma."""
    sizes = {
        "d_model": hf_config["hidden_size"],
        "d_head": hf_config["head_dim"],
        "rotary_dim": hf_config["head_dim"],
        "n_heads": hf_config["num_attention_heads"],
        "n_key_value_heads": hf_config["num_key_value_heads"],
        "d_mlp": hf_config["intermediate_size"],
        "n_layers": hf_config["num_hidden_layers"],
        "n_ctx": hf_config["max_position_embeddings"],
        "d_vocab": hf_config["vocab_size"],
        "eps": hf_config["rms_norm_eps"],
        "act_fn": hf_config.get("hidden_activation") or "gelu_pytorch_tanh",
        "rotary_base": (hf_config.get("rope_parameters") or {}).get("rope_theta", 10000.0),
        "attn_scale": (hf_config.get("query_pre_attn_scalar") or hf_config["head_dim"]) ** 0.5,
    }
    if hf_config["architectures"] == ["Gemma2ForCausalLM"]:
        sizes |= {
            "window_size": hf_config["sliding_window"],
            "attn_types": ["local" if "sliding" in kind else "global" for kind in hf_config["layer_types"]],
            "attn_scores_soft_cap": hf_config["attn_logit_softcapping"] or -1.0,
            "output_logits_soft_cap": hf_config["final_logit_softcapping"] or -1.0,
        }
    derived = {"d_vocab_out": -1, "n_params": None}
    return type(cfg).from_dict({**cfg.to_dict(), **derived, **sizes})


@contextlib.contextmanager
def _config_source(name: str, hf_config: dict[str, Any]) -> Iterator[str]:
    """What to give TransformerLens 3.9 to read a configuration from: a hub name, or a neutrally named folder.

    TransformerLens guesses the architecture from words in a path, such as "llama" or "gemma", before it reads the
    config. It also reads GPT-2's `n_ctx`, which newer configurations no longer hold.
    """
    if not Path(name).is_dir():
        yield name
        return
    template = _GEMMA_TEMPLATES.get((hf_config.get("architectures") or [""])[0])
    if template is not None:
        yield template
        return
    with tempfile.TemporaryDirectory(prefix="model") as folder:
        inner = Path(folder) / "model"
        inner.mkdir()
        config = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
        if "n_positions" in config:
            config.setdefault("n_ctx", config["n_positions"])
        (inner / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield str(inner)


@contextlib.contextmanager
def nothing_installed() -> Iterator[None]:
    """Keep TransformerLens from installing packages.

    For a model that sees too it calls pip for torchvision where that is missing, which brings another torch with it.
    Without it the model has no processor of images, which texts do not need.
    """
    # What stands in for a function of another package must be taken out before it is put in again.
    with _ALONE:
        run = subprocess.check_call

        def check_call(command: Any, *args: Any, **options: Any) -> int:
            if not isinstance(command, str) and {"pip", "install"} <= set(map(str, command)):
                raise RuntimeError(f"{' '.join(map(str, command))}: a model that is loaded installs nothing")
            return run(command, *args, **options)

        subprocess.check_call = check_call
        try:
            yield
        finally:
            subprocess.check_call = run


def as_bridge(name: str, hf_model: Any, tokenizer: Any, dtype: torch.dtype) -> Any:
    """The model as a TransformerBridge, which wraps the modules of the Hugging Face model.

    Raises:
        UnsupportedModelError: this TransformerLens does not know the model.
    """
    from transformer_lens.model_bridge import TransformerBridge

    # Where accelerate has put it, TransformerLens looks itself.
    device = None if getattr(hf_model, "hf_device_map", None) else str(hf_model.device)
    with failures_named(f"{name} (as TransformerBridge)"), nothing_installed():
        bridge = TransformerBridge.boot_transformers(
            name, hf_model=hf_model, tokenizer=tokenizer, device=device, dtype=dtype
        )
        if (own := made_of_offloaded(bridge)) is not None:
            raise UnsupportedModelError(
                f"model {name!r} cannot have its weights brought for each pass: TransformerLens makes {own!r} of "
                f"weights that are fused, when the model is loaded: expected a device_map of accelerators, or of the "
                f"CPU alone"
            )
        return bridge
