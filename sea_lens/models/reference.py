"""The plain Hugging Face model as a reference: what it says of a few seeded tokens, before TransformerLens has it.

A TransformerBridge wraps the modules of its Hugging Face model in place, so that this model run afterwards runs the
bridge. `unwrapped` makes the model that was wrapped anew, around the same weights.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .configuration import Rotation, rotations
from .predictions import Predictions

_LENGTH, _SHORTER, _SHARED = 40, 24, 5
_SEED = 20240521
# How many columns of the probe are read with a cache as well.
COLUMNS = 8


@dataclass(frozen=True)
class Probe:
    """Two seeded texts, the second padded on the right, that begin with the same few tokens: 64 tokens in all.

    Attributes:
        tokens: what pads the second text is a token like any other, which nothing may read.
        mask: 1 on tokens, 0 on padding.
        shared: how many tokens both begin with.
    """

    tokens: Int[Tensor, "2 pos"]
    mask: Int[Tensor, "2 pos"]
    shared: int

    @staticmethod
    def of(d_vocab: int, n_ctx: int) -> "Probe":
        """The probe for a vocabulary, shorter where the context is.

        Tokens with a meaning of their own, such as padding and BOS, stand at either end of a vocabulary and are not
        drawn: models may treat them otherwise than others.
        """
        length = min(_LENGTH, n_ctx)
        shared = min(_SHARED, length // 2)
        generator = torch.Generator().manual_seed(_SEED)
        low = d_vocab // 8
        tokens = torch.randint(low, max(d_vocab - low, low + 1), (2, length), generator=generator)
        tokens[1, :shared] = tokens[0, :shared]
        mask = torch.ones_like(tokens)
        mask[1, max(shared + 1, length * _SHORTER // _LENGTH) :] = 0
        return Probe(tokens, mask, shared)


@dataclass(frozen=True)
class Read:
    """A probe, and the logits of its first columns as a model reads it whole, without a cache.

    Attributes:
        probe: what was read.
        logits: of the first `COLUMNS` columns, or of all where there are fewer.
    """

    probe: Probe
    logits: Float[Tensor, "2 columns d_vocab"]

    @classmethod
    def of(cls, probe: Probe, read: Predictions) -> "Read":
        """Of what a model says of the whole probe."""
        with torch.no_grad():
            return cls(probe, read.rearranged(lambda states: states[:, :COLUMNS]).whole())


@dataclass(frozen=True)
class Reference:
    """What a Hugging Face model has that TransformerLens must have as well.

    Attributes:
        logits: of the probe, on the CPU.
        probe: what was read.
        config: the configuration.
        rotations: its rotary frequencies.
    """

    logits: Float[Tensor, "2 pos vocab"]
    probe: Probe
    config: Any
    rotations: list[Rotation]

    @property
    def is_numbers(self) -> bool:
        """Whether no logit is NaN or infinite."""
        return all(bool((self.logits[tuple(at)] < float("inf")).all()) for at in self.probe.mask.bool().nonzero())

    @staticmethod
    def of(hf_model: Any, probe: Probe) -> "Reference":
        """Read the probe with a Hugging Face model."""
        device = next(one.device for one in hf_model.parameters() if not one.is_meta)
        with torch.no_grad():
            given = {"input_ids": probe.tokens.to(device), "attention_mask": probe.mask.to(device)}
            logits = hf_model(**given, use_cache=False).logits
        return Reference(logits.detach().cpu(), probe, hf_model.config, rotations(hf_model))


def unwrapped(bridge: Any) -> Any:
    """A Hugging Face model of the modules that a bridge wraps, around the same weights.

    Nothing of the bridge changes: modules are copied, tensors are not.
    """
    original = bridge.original_model
    tensors = [*original.parameters(), *original.buffers()]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    return _without_wrappers(original, memo)


def _without_wrappers(module: Any, memo: dict[int, Any]) -> Any:
    inner = module._modules.get("_original_component")
    if inner is not None:
        return _without_wrappers(inner, memo)
    if id(module) in memo:
        return memo[id(module)]
    copied = copy.copy(module)
    memo[id(module)] = copied
    state = dict(vars(module))
    state["_modules"] = {
        name: None if child is None else _without_wrappers(child, memo) for name, child in module._modules.items()
    }
    for name in ("_parameters", "_buffers"):
        state[name] = dict(state[name])
    vars(copied).clear()
    vars(copied).update(state)
    return copied
