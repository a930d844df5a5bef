"""Loading a model on either TransformerLens backend, from the hub by name or from a local Hugging Face folder."""

import contextlib
import copy
import importlib.util
import os
from pathlib import Path
from typing import Any

import torch

from .._support.text_rows import shown
from ..errors import FileError, InputError, UnsupportedModelError
from .attention import ATTENTIONS, fuse, unfuse
from .cache_probe import mend_own_cache, tell_of_own_cache
from .check import checked
from .configuration import context_length, text_config
from .conversion import as_bridge, as_hooked
from .huggingface import Unmatched, failures_named, load_huggingface, quiet
from .lens import Lens, end_tokens
from .placement import Placement
from .reference import Probe, Read, Reference

BACKENDS = ("auto", "hooked", "bridge")
_MAKERS = {"hooked": as_hooked, "bridge": as_bridge}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# The probe of a model without a longest text is cut by nothing.
_LONG_ENOUGH = 2048


def hooked_available() -> bool:
    """Whether the installed TransformerLens still has HookedTransformer (removed in 4.0)."""
    return importlib.util.find_spec("transformer_lens.HookedTransformer") is not None


def load_model(
    name_or_path: str | os.PathLike[str],
    backend: str = "auto",
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = "auto",
    *,
    check: bool = True,
    attention: str = "auto",
    device_map: str | int | torch.device | dict[str, Any] | None = None,
    quantization_config: Any = None,
    max_memory: dict[int | str, int | str] | None = None,
    offload_folder: str | os.PathLike[str] | None = None,
) -> Any:
    """Load a language model in TransformerLens with its weights as trained: nothing folded, nothing centred.

    Raw weights make one edit mean the same on both backends.

    Args:
        name_or_path: a Hugging Face hub name, or a local folder with `config.json` and weights.
        backend: "hooked" (HookedTransformer, TransformerLens 3), "bridge" (TransformerBridge), or "auto": hooked where
            TransformerLens has it and its logits are those of Hugging Face, else bridge.
        device: where to put the model; a GPU where there is one, else the CPU.
        dtype: float32, bfloat16, float16 or float64, as a torch dtype or by name; "auto" is float32 on a CPU, and on
            an accelerator what the weights are stored in.
        check: compare the model with the Hugging Face model, and see that hooks and reading with a cache work
            (`check_model`). False takes whatever TransformerLens makes of it.
        attention: how a bridge computes attention. "auto": by torch's `scaled_dot_product_attention` where it can be
            and logits are those of Hugging Face's own attention, except in layers where a hook asks for scores,
            pattern or anything else that it does not hold; "sdpa": the same, or an error; "eager": always with
            patterns, as a HookedTransformer does.
        device_map: how accelerate spreads the model over several devices, in place of `device`: "auto", "balanced",
            "sequential", a dict from modules to devices, or one device or "disk" for all of them, as in Hugging Face;
            by a bridge alone. Blocks on the "disk",
            and blocks on the "cpu" of a model that also has an accelerator, are brought whenever they run and dropped
            after it; from the disk they are read out of the checkpoint itself. What stands around the blocks stays in
            memory. Numbers are those of the model that is loaded whole. Every pass reads all such weights once, and a
            backward pass once more, so that large batches and the checkpoint's own dtype are fastest.
        quantization_config: one of Hugging Face's configurations, for weights in 8 or 4 bits; by a bridge alone.
        max_memory: how much of each device such a spread may take, as in Hugging Face, {0: "20GiB", "cpu": "60GiB"};
            what is free by default.
        offload_folder: where weights are written that cannot be read as they lie in the checkpoint, as those that
            Hugging Face puts together anew, and those of a checkpoint that is not in safetensors.

    Returns:
        A HookedTransformer or TransformerBridge in evaluation mode, its parameters frozen.

    Raises:
        InputError: unknown backend, dtype or attention, a device that cannot be used, or what can be no name.
        FileError: a local folder that does not exist or has no `config.json`, or weights that lack a part of the model.
        UnsupportedModelError: Hugging Face, this TransformerLens, or its HookedTransformer cannot load the model, or
            makes another model of it; says by how much it deviates. A device map or a quantisation that TransformerLens
            does not take, among them blocks that are brought whose queries, keys and values are fused (GPT-2, Pythia).
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}: expected 'auto', 'hooked' or 'bridge'")
    if attention not in ATTENTIONS:
        raise InputError(f"unknown attention {attention!r}: expected one of {', '.join(ATTENTIONS)}")
    if only := _only_by_bridge(attention, device_map, quantization_config):
        if backend == "hooked":
            raise InputError(f"{only} is for a TransformerBridge: expected backend 'bridge' or 'auto'")
        backend = "bridge"
    placed = Placement.of(device, device_map, quantization_config, max_memory, offload_folder)
    torch_dtype = _dtype(dtype, placed)
    name = resolved(name_or_path)
    available = hooked_available()
    if backend == "hooked" and not available:
        raise UnsupportedModelError("this TransformerLens has no HookedTransformer (removed in 4.0): use 'bridge'")
    kinds = [kind for kind in ("hooked", "bridge") if backend in (kind, "auto") and (kind != "hooked" or available)]
    model, unmatched = _loaded(name, kinds, placed, torch_dtype, attention, check=check)
    if check:
        # Not before, since all else that is said on the way is silenced.
        unmatched.warn(Lens.of(model).name)
        tell_of_own_cache(Lens.of(model))
    return model


def _loaded(
    name: str, kinds: list[str], placed: Placement, torch_dtype: torch.dtype | None, attention: str, *, check: bool
) -> tuple[Any, Unmatched]:
    """The model as the first of some kinds that can be made and is right, and what did not match."""
    # What is made in inference mode could never be part of a backward pass later on.
    with quiet(), torch.inference_mode(False):
        hf_model, tokenizer, unmatched = load_huggingface(name, torch_dtype, placed)
        if check:
            unmatched.refuse(name)
        torch_dtype = _stored_dtype(hf_model) if torch_dtype is None else torch_dtype
        own_tokenizer, more_ends = copy.deepcopy(tokenizer), end_tokens(hf_model)
        with failures_named(f"{name} (as Hugging Face model)"):
            reference = _reference(hf_model.eval()) if check else None
        for kind in kinds:
            try:
                model = _MAKERS[kind](name, hf_model, copy.deepcopy(tokenizer), torch_dtype)
                model = model.eval().requires_grad_(False)
                lens = Lens.of(model)
                lens.own_tokenizer, lens.source, lens.more_ends = own_tokenizer, name, more_ends
                lens.trusted, lens.unmatched = not check, unmatched
                read = _right(lens, attention, reference)
                if kind == "bridge":
                    with failures_named(f"{name} (as TransformerBridge)"):
                        mend_own_cache(lens, read)
                return model, unmatched
            except UnsupportedModelError:
                if kind == kinds[-1]:
                    raise
    raise AssertionError("one backend returns or raises")


def _right(lens: Lens, attention: str, reference: Reference | None) -> Read | None:
    """Settle how a model computes attention, refuse one that is not the reference's, and return what it read.

    Raises:
        UnsupportedModelError: it is another model, or fused attention was asked for and cannot be had.
    """
    why = "TransformerLens computes it with patterns" if lens.backend == "hooked" else None
    if attention != "eager" and why is None:
        why = fuse(lens.model)
    if attention == "sdpa" and why is not None:
        raise UnsupportedModelError(f"{lens.name} cannot compute attention by sdpa: {why}: expected attention='eager'")
    if reference is None:
        return None
    if attention == "auto" and why is None:
        # What Hugging Face itself computes otherwise in the two ways is computed in the one that has patterns.
        with contextlib.suppress(UnsupportedModelError):
            found, read = checked(lens, reference)
            found.refuse(lens.name)
            return read
        unfuse(lens.model)
    found, read = checked(lens, reference)
    found.refuse(f"{lens.name} as {lens.backend}")
    return read


def _reference(hf_model: Any) -> Reference:
    """What the Hugging Face model says."""
    probe = Probe.of(text_config(hf_model.config).vocab_size, context_length(hf_model.config) or _LONG_ENOUGH)
    return Reference.of(hf_model, probe)


def _only_by_bridge(attention: str, device_map: Any, quantization_config: Any) -> str | None:
    """The option that only a bridge has, if one was given."""
    given = {
        "attention='sdpa'": attention == "sdpa",
        "device_map": device_map is not None,
        "quantization_config": quantization_config is not None,
    }
    return next((name for name, is_given in given.items() if is_given), None)


def _dtype(dtype: torch.dtype | str | None, placed: Placement) -> torch.dtype | None:
    """What to load in; None for what the weights are stored in."""
    if dtype in (None, "auto"):
        return torch.float32 if placed.on_cpu else None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}: expected 'auto', float32, bfloat16, float16 or float64")
    return found


def _stored_dtype(hf_model: Any) -> torch.dtype:
    found = next(hf_model.parameters()).dtype
    if found not in DTYPES:
        raise UnsupportedModelError(
            f"weights are stored as {found}: expected float32, bfloat16, float16 or float64 (dtype= converts them)"
        )
    return found


def resolved(given: Any) -> str:
    """The Hugging Face name or the folder that was given.

    Raises:
        InputError: it is neither; says why.
        FileError: a folder that is not there.
    """
    name_or_path = os.fspath(given) if isinstance(given, (str, os.PathLike)) else None
    if not isinstance(name_or_path, str):
        raise InputError(f"model {shown(given)}: expected a Hugging Face name or a local folder, as a text or a path")
    if not name_or_path.strip():
        raise InputError("the model's name is empty: expected a Hugging Face name or a local folder")
    try:
        path = Path(name_or_path).expanduser()
        # A path's own questions are answered with no for a NUL or half a character, and with an error for other names.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
        is_folder, has_config, exists = path.is_dir(), (path / "config.json").is_file(), path.exists()
    # Too long, in a folder that may not be read, or ~ of a user who is not there.
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"model {shown(name_or_path)} cannot be looked for: {reason}") from error
    if is_folder:
        if not has_config:
            raise FileError(f"{name_or_path} is a folder without config.json: expected a Hugging Face model folder")
        return str(path.resolve())
    if exists or name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
        raise FileError(f"{name_or_path}: no such model folder")
    return name_or_path
