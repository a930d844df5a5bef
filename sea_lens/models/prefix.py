"""Tokens in front of everything that a model reads, without its caller's knowledge.

They stand behind a row's BOS and padding. Logits (and the residual stream of a pass that stops early) come back for the
caller's own positions, so that whatever measures a model measures it with the prefix in its context. Activations at
hook points hold the prefix's positions too; `Lens.read` leaves them out.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import InputError
from .forward_stand_in import ForwardStandIn, first_layer, refuse_losses
from .hooks import ModuleHook
from .lens import Lens
from .tokens import bos_token


class PrefixStandIn(ForwardStandIn):
    """Puts tokens in front of what a model reads, until it is removed.

    Args:
        lens: the model; its context is shorter by the prefix meanwhile.
        tokens: the prefix, without BOS.
    """

    def __init__(self, lens: Lens, tokens: Sequence[int]) -> None:
        super().__init__(lens.model)
        self._lens, self._tokens, self._inside = lens, torch.tensor(list(tokens), device=lens.device), False
        # Hugging Face's own generation runs the model inside a bridge past `forward`.
        inside = getattr(lens.model, "original_model", None)
        self._guard = None if inside is None else ModuleHook(inside, before=self._check_caller)

    def __len__(self) -> int:
        return len(self._tokens)

    def attach(self) -> None:
        """Put the prefix in front of everything."""
        self._lens.prefixes.append(self)
        super().attach()
        if self._guard is not None:
            self._guard.attach()

    def remove(self) -> None:
        """Take the prefix away; may be called twice."""
        super().remove()
        if self._guard is not None:
            self._guard.remove()
        self._lens.prefixes[:] = [prefix for prefix in self._lens.prefixes if prefix is not self]

    def run(self, asked: inspect.BoundArguments) -> Any:
        """Logits, or what else was asked for, at the caller's positions.

        Raises:
            InputError: a loss is asked for, the pass starts at a later layer or from embeddings, or the tokens do not
                fit the context together with the prefix.
        """
        given = asked.arguments
        refuse_losses(asked, "the prefix too")
        if first_layer(self._lens.n_layers, asked) > 0:
            raise InputError("a prefix is read with the tokens behind it: expected a pass that starts at layer 0")
        tokens, mask = given["input"], given.get("attention_mask")
        if not isinstance(tokens, Tensor):
            tokens = self._module.to_tokens(tokens, prepend_bos=given.get("prepend_bos"))
        if tokens.is_floating_point():
            raise InputError(
                "examples stand in front of tokens: expected tokens, got embeddings (which HookedTransformer.generate "
                "hands on; `sl.generate` does not)"
            )
        tokens = tokens.to(self._lens.device)
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        read_before = _read_before(given)
        mask = mask if mask is None else mask.to(self._lens.device)
        if mask is None and read_before == 0:
            mask = torch.ones_like(tokens)
        # A HookedTransformer remembers the mask of what it has read, a bridge is given it again.
        if mask is not None and (read_before == 0 or self._lens.backend == "bridge"):
            first = _first_tokens(mask)
            if read_before == 0:
                self._check_room(tokens.shape[1])
                tokens = _inserted(tokens, first + self._has_bos(tokens, first), self._tokens)
            mask = _inserted(mask, first, torch.ones_like(self._tokens, dtype=mask.dtype))
        given["input"], given["attention_mask"] = tokens, mask
        self._shift_positions(given.get("kwargs", {}), read_before)
        output = self._forwarded(asked)
        return self._without_prefix(output) if read_before == 0 else output

    def _forwarded(self, asked: inspect.BoundArguments) -> Any:
        outer, self._inside = self._inside, True
        try:
            return self.forward(asked)
        finally:
            self._inside = outer

    def _has_bos(self, tokens: Int[Tensor, "batch pos"], first: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        bos = bos_token(self._lens)
        return torch.zeros_like(first) if bos is None else (tokens.gather(1, first[:, None])[:, 0] == bos).long()

    def _check_room(self, given: int) -> None:
        n_ctx = int(self._module.cfg.n_ctx)
        if given + len(self._tokens) > n_ctx:
            raise InputError(
                f"{given} tokens behind {len(self._tokens)} of examples: the context of {self._lens.name!r} holds "
                f"{n_ctx}"
            )

    def _shift_positions(self, options: dict[str, Any], read_before: int) -> None:
        """Move the positions that a caller counted without the prefix; in the first pass the mask gives them."""
        positions = options.pop("position_ids", None)
        if positions is not None and read_before > 0:
            options["position_ids"] = positions + len(self._tokens)

    def _without_prefix(self, output: Any) -> Any:
        # The prefix's last token predicts the caller's first one, as BOS would without a prefix: so the first positions
        # are left out (docs/method.md 5.5).
        if isinstance(output, tuple):
            return (self._without_prefix(output[0]), *output[1:])
        return output[:, len(self._tokens) :] if isinstance(output, Tensor) else output

    def _check_caller(self) -> None:
        if not self._inside:
            raise InputError(
                "examples stand in front only of what the TransformerLens model reads itself: expected a call of the "
                "model, its `generate` or `sl.generate`, not the Hugging Face model inside"
            )


def _read_before(given: dict[str, Any]) -> int:
    """How many tokens stand in the cache that a pass goes on from."""
    # The cache is a parameter of the bridge's `forward` in one TransformerLens and among its keywords in another.
    options = {**given, **given.get("kwargs", {})}
    if options.get("past_kv_cache") is not None:
        return options["past_kv_cache"][0].past_keys.shape[1]
    past = options.get("past_key_values")
    return 0 if past is None else past.get_seq_length()


def _first_tokens(mask: Int[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    """Where each row's first token stands, behind its padding on the left."""
    return mask.long().argmax(1)


def _inserted(
    rows: Int[Tensor, "batch pos"], places: Int[Tensor, " batch"], new: Int[Tensor, " n"]
) -> Int[Tensor, "batch pos_and_n"]:
    """Each row with the new values at a place of its own."""
    return torch.stack(
        [torch.cat([row[:place], new, row[place:]]) for row, place in zip(rows, places.tolist(), strict=True)]
    )
