"""Continuations of prompts, with and without an edit (docs/method.md 6.10)."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from .._support.arguments import as_integer
from ..errors import DemonstrationError, InputError
from ..models.decoding import before_stop, continue_prompts, decode_continuation
from ..models.language_model import LanguageModel
from ..models.lens import Lens
from ..models.sampling import Sampling
from ..models.tokens import encode
from ..models.vllm_engine import language_model
from .base import Edit, as_edit
from .in_engine import applied_in_engine
from .where import LayerChoice, Positions, Strength, warn_without_edit

Prompts: TypeAlias = (
    str | Tensor | np.ndarray | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Sequence[Tensor]
)


@overload
def generate(
    model: Any,
    prompts: Prompts,
    edit: Edit | None = None,
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    max_new_tokens: SupportsIndex = 32,
    temperature: SupportsFloat = 0.0,
    top_p: SupportsFloat = 1.0,
    top_k: SupportsIndex | None = None,
    seed: SupportsIndex = 0,
    stop: str | Iterable[str] = (),
    return_tokens: Literal[False] = False,
    prepend_bos: bool = True,
    batch_size: SupportsIndex = 16,
) -> list[str]: ...


@overload
def generate(
    model: Any,
    prompts: Prompts,
    edit: Edit | None = None,
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    max_new_tokens: SupportsIndex = 32,
    temperature: SupportsFloat = 0.0,
    top_p: SupportsFloat = 1.0,
    top_k: SupportsIndex | None = None,
    seed: SupportsIndex = 0,
    stop: str | Iterable[str] = (),
    return_tokens: Literal[True],
    prepend_bos: bool = True,
    batch_size: SupportsIndex = 16,
) -> list[list[int]]: ...


def generate(
    model: Any,
    prompts: Any,
    edit: Edit | None = None,
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    max_new_tokens: SupportsIndex = 32,
    temperature: SupportsFloat = 0.0,
    top_p: SupportsFloat = 1.0,
    top_k: SupportsIndex | None = None,
    seed: SupportsIndex = 0,
    stop: Any = (),
    return_tokens: bool = False,
    prepend_bos: bool = True,
    batch_size: SupportsIndex = 16,
) -> list[str] | list[list[int]]:
    """Continuations of prompts, decoded with a KV cache under the edit, up to EOS or another end token.

    Args:
        model: a TransformerLens model; or a vLLM engine (`vllm.LLM`), for many prompts (docs/method.md 6.14).
        prompts: a text or several; or the token ids of one prompt (a list of integers, or a tensor (pos,)) or of
            several (a list of these, or a tensor (batch, pos) without padding). Token ids are taken as they are: no BOS
            is added.
        edit: the edit to apply, none by default.
        layers, strength, combine, positions: as in `Edit.applied`.
        max_new_tokens: longest continuation in tokens.
        temperature: 0 takes the most probable token; above 0 tokens are drawn, at 1 from the model's own distribution.
        top_p: with a temperature, draw from the smallest set of most probable tokens that has this probability.
        top_k: with a temperature, draw from so many of the most probable tokens.
        seed: of the draws. A prompt's continuation depends on it and the prompt alone, not on the other prompts; a
            prompt that is given several times is continued in as many ways.
        stop: texts that end a continuation; it is cut before the first of them.
        return_tokens: give the token ids of the continuations in place of their texts: without the end token, and with
            those that complete a stop text.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        batch_size: prompts at a time; an engine chooses by itself.

    Returns:
        One continuation for each prompt, without the prompt.

    Raises:
        DemonstrationError: a prompt without tokens, or one that does not fit the model's context with its continuation.
        InputError: prompts that are neither texts nor token ids of the model, an option out of range, `top_p` or
            `top_k` without a temperature, or an empty stop text.
        ActivationError: the model's logits for a next token are NaN or infinite; names the prompt.
        Otherwise as `Edit.applied`.

    Warns:
        UserWarning: layers, a strength, `combine` or positions are given without an edit.

    Example:
        >>> prompts = ["Q: what is the river of Delkeld ? A:", "Q: what is the mountain of Delvath ? A:"]
        >>> sl.generate(bed.model, prompts, max_new_tokens=1)
        [' Selwyn', ' Nerith']
    """
    batch_size = as_integer(batch_size, "batch_size", least=1)
    max_new_tokens = as_integer(max_new_tokens, "max_new_tokens", least=1)
    sampling = Sampling(temperature, top_p, top_k, seed)  # type: ignore[arg-type]
    stops = stop_texts(stop)
    if edit is None:
        warn_without_edit(layers=layers, strength=strength, combine=combine, positions=positions)
    edit = None if edit is None else as_edit(edit)
    lens = language_model(model)
    tokens = prompt_tokens(lens, prompts, prepend_bos=prepend_bos)
    chosen = layers, strength, combine, positions
    if edit is None:
        context = contextlib.nullcontext()
    elif isinstance(lens, Lens):
        context = edit.applied(model, *chosen)
    else:
        context = applied_in_engine(lens, edit, *chosen)
    with context:
        found = continue_prompts(lens, tokens, max_new_tokens, batch_size=batch_size, stop=stops, sampling=sampling)
    if return_tokens:
        return found
    return [before_stop(decode_continuation(lens, *pair), stops) for pair in zip(tokens, found, strict=True)]


def stop_texts(stop: Any) -> tuple[str, ...]:
    """The texts that end a continuation; arguments and errors as in `generate`."""
    given = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Iterable) else (stop,)
    if not all(isinstance(text, str) and text for text in given):
        raise InputError(f"stop {stop!r}: expected a non-empty text, or several")
    return given


def prompt_tokens(lens: LanguageModel, prompts: Any, *, prepend_bos: bool = True) -> list[list[int]]:
    """Tokens of prompts given as texts or as token ids; arguments and errors as in `generate`."""
    if isinstance(prompts, str):
        prompts = [prompts]
    elif isinstance(prompts, np.ndarray):
        prompts = prompts.tolist()
    if isinstance(prompts, Tensor):
        _check_memory(prompts, "prompts")
        if prompts.ndim not in (1, 2):
            raise InputError(f"prompts of shape {tuple(prompts.shape)}: expected token ids (pos,) or (batch, pos)")
        prompts = [prompts] if prompts.ndim == 1 else list(prompts)
    if not isinstance(prompts, Iterable) or isinstance(prompts, (bytes, Mapping, Set)):
        raise InputError(f"{_EXPECTED}, got {type(prompts).__name__}")
    given = list(prompts)
    if given and all(_is_id(one) for one in given):
        given = [given]
    texts = [isinstance(one, str) for one in given]
    if any(texts) and not all(texts):
        raise InputError(f"{_EXPECTED}, got both")
    return [
        encode(lens, one, prepend_bos=prepend_bos, what=f"prompt {i}")
        if isinstance(one, str)
        else _checked_ids(lens, one, f"prompt {i}")
        for i, one in enumerate(given)
    ]


_EXPECTED = "prompts: expected texts or token ids (whole numbers)"


def _is_id(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0
    return isinstance(value, (SupportsIndex, float)) and not isinstance(value, np.ndarray)


def _check_memory(ids: Tensor, what: str) -> None:
    if ids.is_meta or ids.layout != torch.strided or ids.is_complex() or ids.is_quantized:
        raise InputError(f"{what} of {ids.dtype}, layout {ids.layout}, on {ids.device}: expected token ids in memory")


def _checked_ids(lens: LanguageModel, ids: Any, what: str) -> list[int]:
    if isinstance(ids, Tensor):
        _check_memory(ids, what)
    if isinstance(ids, Tensor) and (ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool):
        raise InputError(f"{what}: expected token ids (pos,), got {ids.dtype} of shape {tuple(ids.shape)}")
    if not isinstance(ids, Iterable) or isinstance(ids, (bytes, Mapping, Set)):
        raise InputError(f"{_EXPECTED}, got {type(ids).__name__} for {what}")
    tokens = [as_integer(one, f"{what}, token id") for one in (ids.tolist() if isinstance(ids, Tensor) else ids)]
    if not tokens:
        raise DemonstrationError(f"{what} has no tokens")
    if beyond := [one for one in tokens if not 0 <= one < lens.d_vocab]:
        raise InputError(f"{what} has token ids {beyond[:4]}: expected 0 to {lens.d_vocab - 1}, the model's vocabulary")
    if len(tokens) > lens.n_ctx:
        raise DemonstrationError(f"{what} has {len(tokens)} tokens, the model's context holds {lens.n_ctx}")
    return tokens
