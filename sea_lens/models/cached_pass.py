"""One pass that goes on from a cache of keys and values, on either backend, and what may be done with such a cache.

A bridge looks for the cache under the name that Transformers gave it once. From Transformers 5.24 on most attention
layers get it under another, so that a bridge's own attention fills no cache and attends to the new tokens alone.
"""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import UnsupportedModelError
from .lens import Lens
from .predictions import Predictions, predict, unembedding_put_off
from .token_positions import telling_of_row


def cached_pass(
    lens: Lens,
    tokens: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch past_and_pos"],
    state: Any,
    *,
    renamed: bool = False,
) -> tuple[Predictions, Any]:
    """What follows each of the next tokens, and the cache with them in it; the cache that was given stays as it is.

    Args:
        lens: the model.
        tokens: the next ones.
        mask: 1 on tokens and 0 on padding, of what the cache holds too.
        state: the backend's own cache, None before the first token.
        renamed: give a bridge's attention the cache under its old name as well.

    Raises:
        UnsupportedModelError: the model keeps something else than keys and values.
    """
    if lens.backend == "hooked":
        return _hooked_pass(lens, tokens, mask[:, mask.shape[1] - tokens.shape[1] :], state)
    with unembedding_put_off(lens) as predicted:
        logits, state = _bridge_pass(lens, tokens, mask, None if state is None else copied(state), renamed)
        found = predicted(logits)
    if not hasattr(state, "layers") or not all(hasattr(layer, "keys") for layer in state.layers):
        raise UnsupportedModelError(f"model {lens.name!r} has no cache of keys and values to go on from")
    return found, state


def read_with_cache(
    lens: Lens,
    tokens: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch past_and_pos"],
    names: Sequence[str],
    reduce: Callable[[Tensor, str], Tensor],
    state: Any,
    *,
    renamed: bool = False,
) -> tuple[dict[str, Tensor], Any]:
    """`Lens.read` of the next tokens, and the cache of the layers that were run.

    Args:
        lens, names, reduce: as in `Lens.read`.
        tokens, mask, renamed: as in `cached_pass`.
        state: the backend's own cache, which these tokens are added to; None before the first token.

    Returns:
        What was kept at each hook point, and the cache; None for the cache where a bridge kept none.
    """
    tokens, mask = tokens.to(lens.device), mask.to(lens.device)
    if lens.backend == "hooked":
        state = _empty_hooked_cache(lens, len(tokens)) if state is None else state

        def run_hooked() -> object:
            new = mask[:, mask.shape[1] - tokens.shape[1] :]
            return lens.model(tokens, attention_mask=new, past_kv_cache=state, return_type="logits")

        return lens.read_during(run_hooked, names, reduce=reduce), state
    with lens.alone(), _caught_cache(lens.model) as caught:
        run = partial(_bridge_pass, lens, tokens, mask, state, renamed)
        found = lens.read_during(run, names, reduce=reduce)
    return found, next(iter(caught), None) if state is None else state


def _bridge_pass(lens: Lens, tokens: Tensor, mask: Tensor, state: Any, renamed: bool) -> tuple[Tensor, Any]:
    """Logits and the cache, which is the one that was given, with the tokens in it."""
    given = {} if state is None else {"past_key_values": state}
    with cache_under_old_name(lens.model) if renamed else contextlib.nullcontext(), warnings.catch_warnings():
        # The bridge gives and takes the cache by its old name, which nobody here can change.
        warnings.filterwarnings("ignore", ".*(past_key_values|layer_past).*", FutureWarning)
        return lens.model(tokens, attention_mask=mask, use_cache=True, return_type="logits_and_cache", **given)


@contextlib.contextmanager
def _caught_cache(model: Any) -> Iterator[list[Any]]:
    """The cache that a bridge's first attention layer is given, since a pass that stops early gives none back."""
    caught: list[Any] = []

    def catch(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.extend(_caches(kwargs))

    with contextlib.ExitStack() as stack:
        for attention in attentions(model)[:1]:
            stack.callback(attention.register_forward_pre_hook(catch, with_kwargs=True).remove)
        yield caught


def _hooked_pass(lens: Lens, tokens: Tensor, mask: Tensor, state: Any) -> tuple[Predictions, Any]:
    state = _empty_hooked_cache(lens, len(tokens)) if state is None else copied(state)
    with unembedding_put_off(lens) as predicted:
        return predicted(lens.model(tokens, attention_mask=mask, past_kv_cache=state, return_type="logits")), state


def _empty_hooked_cache(lens: Lens, rows: int) -> Any:
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    return TransformerLensKeyValueCache.init_cache(lens.model.cfg, lens.device, rows)


def copied(state: Any) -> Any:
    """The cache with entries of its own; both backends put new tensors into them and never write into old ones."""
    new = copy.copy(state)
    name = "entries" if hasattr(state, "entries") else "layers"
    setattr(new, name, [copy.copy(entry) for entry in getattr(state, name)])
    return new


def selected(state: Any, rows: Int[Tensor, " batch"]) -> Any:
    """The cache of these rows; a row may come several times."""
    state = copied(state)
    if hasattr(state, "entries"):
        state.previous_attention_mask = state.previous_attention_mask[rows]
        for entry in state.entries:
            entry.past_keys, entry.past_values = entry.past_keys[rows], entry.past_values[rows]
    else:
        state.batch_select_indices(rows)
    return state


def keys(state: Any) -> list[Tensor]:
    """The keys that a cache holds, of each layer that has read anything."""
    if hasattr(state, "entries"):
        return [entry.past_keys for entry in state.entries]
    return [layer.keys for layer in state.layers if isinstance(layer.keys, Tensor)]


def holds(state: Any, length: int, layers: int | None = None) -> bool:
    """Whether every layer of a cache, or each of the first `layers`, holds this many positions."""
    if hasattr(state, "entries"):
        return all(entry.past_keys.shape[1] == length for entry in state.entries[:layers])
    return all(layer.get_seq_length() == length for layer in state.layers[:layers])


def attentions(model: Any) -> Sequence[Any]:
    """The attention layers of a bridge's blocks."""
    return [block.attn for block in model.blocks if hasattr(block, "attn")]


def give_under_old_name(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A torch hook before an attention layer that adds the cache by its old name to what the layer is given."""
    if kwargs.get("past_key_values") is not None:
        return None
    cache = next(_caches(kwargs), None)
    return None if cache is None else (args, {**kwargs, "past_key_values": cache})


def _caches(kwargs: dict[str, Any]) -> Iterator[Any]:
    """The caches among the arguments of an attention layer."""
    from transformers.cache_utils import Cache

    return (value for value in kwargs.values() if isinstance(value, Cache))


@contextlib.contextmanager
def cache_under_old_name(model: Any) -> Iterator[None]:
    """A bridge's attention gets the cache by its old name as well, for the length of a context."""
    with contextlib.ExitStack() as stack:
        for attention in attentions(model):
            handle = attention.register_forward_pre_hook(give_under_old_name, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def keep_cache_under_old_name(model: Any) -> None:
    """The same for good, on this model alone, so that its own `generate` remembers the prompt; may be called twice."""
    for attention in attentions(model):
        if give_under_old_name not in attention._forward_pre_hooks.values():
            attention.register_forward_pre_hook(give_under_old_name, with_kwargs=True)


def whole_pass(
    lens: Lens, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], *, apart: bool = False
) -> Predictions:
    """Predictions without any cache, in rows that may be padded on the left, on the right, or on both sides.

    The rows are moved to the left, where they are exact on every backend. Predictions at padding mean nothing.

    Args:
        lens: the model.
        tokens, mask: the rows.
        apart: run one row at a time, for a model that reads a row otherwise beside a longer one.
    """
    if apart and len(tokens) > 1:
        found = []
        for row in range(len(tokens)):
            with telling_of_row(lens, row):
                found.append(whole_pass(lens, tokens[row : row + 1], mask[row : row + 1]))
        return replace(found[0], states=torch.cat([one.states for one in found]))
    mask = mask.long()
    order = (1 - mask).argsort(dim=1, stable=True)
    width = int(mask.sum(1).max())
    found = predict(lens, tokens.gather(1, order)[:, :width], mask.gather(1, order)[:, :width])
    places = (mask.cumsum(1) - 1).clamp(min=0).to(found.states.device)
    rows = torch.arange(len(tokens), device=places.device)[:, None]
    return found.rearranged(lambda states: states[rows, places])
