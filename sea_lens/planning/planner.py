"""What fits where: memory, passes and disk of every call, before any weight is read."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .._support.arguments import as_integer
from ..edits.where import LayerChoice, choose_layers
from ..errors import InputError, UnsupportedModelError
from ..evaluation.benchmark import Benchmark
from ..evaluation.run import Task
from ..models.configuration import text_config
from ..models.huggingface import failures_named, quiet
from ..models.load import BACKENDS, DTYPES, resolved
from ..models.reading import TOKENS_ON_ACCELERATOR, TOKENS_ON_CPU
from ..models.sites import Site
from ..models.vocabulary_parts import stands_for
from ..texts.demonstrations import Contrasts, Demonstrations
from ..texts.items import Contrast, Demonstration
from .advice import advised
from .counted_steps import CountedSteps
from .empty_models import EmptyModel
from .planned_steps import STEPS, PlannedSteps, stored_dtype
from .plans import Plan, Step
from .quantities import memory_of, read_bytes
from .texts import TokenCounter, as_contrasts, as_demonstrations, assumed_contrasts, assumed_demonstrations

# Directions of a side that are planned for where none are asked for: few dozen, as energies of 0.99 and the like give.
FEW = 32


def plan(
    model: str | os.PathLike[str] | Any,
    demonstrations: Iterable[Demonstration] | None = None,
    contrasts: Iterable[Contrast] | None = None,
    site: str = "mlp_out",
    layers: LayerChoice = "all",
    *,
    rank: int | None = None,
    backend: str = "auto",
    device: str | None = None,
    dtype: torch.dtype | str | None = "auto",
    memory: str | float | None = None,
    batch_size: int = 16,
    tokens_per_batch: int | None = None,
    max_new_tokens: int = 32,
    prepend_bos: bool = True,
    benchmark: str | Benchmark | Task | None = None,
    data: str | os.PathLike[str] | None = None,
    steps: Iterable[str] | None = None,
) -> Plan:
    """Memory, passes, tokens and disk of every step on a model, before any of them is made.

    No weight is read. The package's own code runs on a model of the configuration that has sizes and no numbers, and
    the bytes that it holds are counted (docs/what_fits_where.md).

    Args:
        model: a folder with a `config.json` (weights need not be there), a Hugging Face name, or a configuration of
            transformers.
        demonstrations: what will be fitted; 1,000 of 128 tokens and answers of 32 by default.
        contrasts: what effects will be measured on; by default made of the demonstrations, 200 of them at most.
        site, layers: what will be edited, as in `capture`.
        rank: directions of each side; by default a few dozen are planned for, and the worst case is told.
        backend, dtype, batch_size, tokens_per_batch, max_new_tokens, prepend_bos: as the calls take them.
        device: where the model will be, "cpu" or "cuda"; it need not be here. A GPU where there is one by default.
        benchmark, data: what will be evaluated, as `evaluate` takes both; nothing by default.
        steps: which steps, of those of `STEPS`; all by default, "evaluate" where a benchmark is given.
        memory: how much there is, such as "24GB" or "80GiB"; that of this machine's GPU, or of the machine, by default.

    Returns:
        A step for each call, with what it holds at most above an idle process.

    Raises:
        InputError: an unknown site, layer, backend, dtype, device, step or unit of memory, or a number out of range.
        FileError: a folder that does not exist or has no `config.json`.
        UnsupportedModelError: no model of this configuration can be made.
        DemonstrationError: a text longer than the model's context; names it.

    Example:
        >>> from transformers import AutoConfig
        >>> config = AutoConfig.for_model("llama", hidden_size=4096, num_hidden_layers=32)
        >>> plan = sl.plan(config, device="cuda", dtype="bfloat16", memory="24GB", steps=["load", "capture"])
        >>> plan["load"].memory > 13e9
        True
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}: expected 'auto', 'hooked' or 'bridge'")
    placed = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if placed.split(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"device {device!r}: expected cpu or cuda")
    limit = memory_of(placed) if memory is None else read_bytes(memory)
    on_cpu = placed == "cpu"
    if tokens_per_batch is None:
        tokens_per_batch = TOKENS_ON_CPU if on_cpu else TOKENS_ON_ACCELERATOR
    tokens_per_batch = as_integer(tokens_per_batch, "tokens_per_batch", least=1)
    batch_size = as_integer(batch_size, "batch_size", least=1)
    max_new_tokens = as_integer(max_new_tokens, "max_new_tokens", least=1)
    asked = None if rank is None else as_integer(rank, "rank", least=1)
    Site.of(site)
    task = benchmark if isinstance(benchmark, Task) or benchmark is None else Task.read(benchmark, data)
    if task is None and data is not None:
        raise InputError("data is a benchmark's: expected benchmark as well")
    names = _names(steps, task)
    config, folder = _configuration(model)
    chosen_dtype = _dtype(dtype, config, on_cpu)
    tokenizer = None if folder is None else _tokenizer(folder)
    empty = EmptyModel.of(config, backend, chosen_dtype, tokenizer)
    chosen = choose_layers(layers, range(empty.n_layers))
    demos, pairs, told = _texts(empty, tokenizer, demonstrations, contrasts)
    counted = CountedSteps(
        empty,
        demos,
        pairs,
        site,
        chosen,
        FEW if asked is None else asked,
        batch_size,
        tokens_per_batch,
        prepend_bos,
    )
    made = PlannedSteps(counted, on_cpu, asked, max_new_tokens, task)
    facts = {
        "name": Path(str(getattr(config, "name_or_path", "") or config.model_type)).name,
        "parameters": empty.parameters,
        "n_layers": empty.n_layers,
        "d_model": empty.lens.d_model,
        "n_heads": empty.lens.n_heads,
        "d_head": empty.lens.d_head,
        "d_vocab": empty.lens.d_vocab,
        "dtype": str(chosen_dtype).removeprefix("torch."),
        "backend": empty.backend,
    }
    about = {"demonstrations": len(demos), "contrasts": len(pairs), "tokens": told}

    def recounted(name: str, smaller: int) -> Step:
        return replace(made, counted=replace(counted, batch_size=smaller)).step(name)

    with _logits_as_on(placed), failures_named(facts["name"], "run"):
        found = Plan(facts, about, placed, limit, [made.step(name) for name in names])
        advice = [advised(found, one, recounted, batch_size) for one in found.steps]
    return replace(found, steps=[replace(one, advice=text) for one, text in zip(found.steps, advice, strict=True)])


def _names(steps: Iterable[str] | None, task: Task | None) -> list[str]:
    """Of the steps that are planned, in the order in which they are called."""
    asked = set(STEPS if steps is None else [steps] if isinstance(steps, str) else steps)
    if unknown := sorted(map(str, asked - {*STEPS})):
        raise InputError(f"unknown step {unknown[0]!r}: expected some of {'; '.join(STEPS)}")
    if steps is not None and "evaluate" in asked and task is None:
        raise InputError("step 'evaluate' needs a benchmark")
    if not asked:
        raise InputError(f"no step is asked for: expected some of {'; '.join(STEPS)}")
    return [name for name in STEPS if name in asked and (name != "evaluate" or task is not None)]


def _configuration(model: Any) -> tuple[Any, str | None]:
    """The configuration, and the folder or the name that it came from."""
    from transformers import AutoConfig, PreTrainedConfig

    if isinstance(model, PreTrainedConfig):
        config, name = model, None
    else:
        name = resolved(model)
        with failures_named(name), quiet():
            config = AutoConfig.from_pretrained(name)
    _refuse(config, name or config.model_type)
    return config, name


def _refuse(config: Any, name: str) -> None:
    """Refuse what cannot be planned.

    Raises:
        UnsupportedModelError: a model that is not causal, has no layers, or has its weights in few bits.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    inner = text_config(config)
    if config.is_encoder_decoder or (
        inner.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(inner, "is_decoder", False)
    ):
        raise UnsupportedModelError(f"model {name!r} is a {inner.model_type}, which is no causal language model")
    if not getattr(inner, "num_hidden_layers", 0) >= 1:
        raise UnsupportedModelError(f"model {name!r} has {getattr(inner, 'num_hidden_layers', 'no')} layers")
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(
            f"model {name!r} has its weights in few bits, which are not planned: expected a configuration without "
            f"quantization_config"
        )


def _tokenizer(name: str) -> Any:
    """The tokenizer beside a configuration, None where there is none."""
    from transformers import AutoTokenizer

    with quiet():
        # Whatever is missing, of whatever kind of tokenizer.
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
            return tokenizer if tokenizer("a", add_special_tokens=False).input_ids else None
        except Exception:
            return None


def _dtype(dtype: torch.dtype | str | None, config: Any, on_cpu: bool) -> torch.dtype:
    """As `load_model` chooses; what a configuration does not name counts as float32."""
    if dtype in (None, "auto"):
        return torch.float32 if on_cpu else stored_dtype(config)
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}: expected 'auto', float32, bfloat16, float16 or float64")
    return found


def _texts(
    empty: EmptyModel,
    tokenizer: Any,
    demonstrations: Iterable[Demonstration] | None,
    contrasts: Iterable[Contrast] | None,
) -> tuple[Demonstrations, Contrasts, str]:
    """What is planned for, and how its tokens are counted."""
    config = text_config(empty.config)
    counter = TokenCounter(empty.lens.d_vocab, bos_token_id=getattr(config, "bos_token_id", None))
    pairs = None if contrasts is None else Contrasts.of(contrasts)
    if demonstrations is not None:
        demos = Demonstrations.of(demonstrations)
        pairs = as_contrasts(demos) if pairs is None else pairs
    elif pairs is not None:
        demos = as_demonstrations(pairs)
    else:
        demos, pairs = assumed_demonstrations(empty.lens.n_ctx), assumed_contrasts(empty.lens.n_ctx)
    told = "lengths are assumed"
    if demonstrations is None and contrasts is None:
        tokenizer = None
    else:
        told = "tokens of the model's tokenizer"
        if tokenizer is None:
            told = "no tokenizer is there: four characters count as a token"
    for lens in empty.lenses:
        lens.own_tokenizer = counter if tokenizer is None else tokenizer
    return demos, pairs, told


@contextlib.contextmanager
def _logits_as_on(device: str) -> Iterator[None]:
    """Parts of the vocabulary of the size that a device makes of them, also of tensors that are nowhere."""
    before = stands_for.set(device.split(":")[0])
    try:
        yield
    finally:
        stands_for.reset(before)
