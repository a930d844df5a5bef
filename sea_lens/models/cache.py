"""Keys and values of what a model has read, so that texts that begin alike are read only once.

Rows may be padded on the left before their first token and on the right after their last one, never in between. Every
position and every sliding window is then exact on every backend.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UnsupportedModelError
from .lens import Lens


@dataclass(frozen=True)
class Past:
    """What a model has read in each of some rows; never changed, every step makes a new one.

    Attributes:
        lens: the model.
        rows: number of rows.
        mask: 1 on the tokens that each row has read, 0 on padding; None before the first token.
        state: the backend's own cache, None before the first token.
    """

    lens: Lens
    rows: int
    mask: Int[Tensor, "batch past"] | None = None
    state: Any = None

    def read(
        self, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"] | None = None
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], "Past"]:
        """Logits of the next tokens, and the past that includes them.

        Args:
            tokens: as many rows as this past has.
            mask: 1 on tokens, 0 on padding; all tokens by default. Padding on the left is allowed only before a row's
                very first token; rows that were padded on the right cannot be read on from.

        Raises:
            UnsupportedModelError: the model keeps something else than keys and values.
        """
        new = torch.ones_like(tokens) if mask is None else mask
        new, tokens = new.to(self.lens.device), tokens.to(self.lens.device)
        whole = new if self.mask is None else torch.cat([self.mask, new], 1)
        with torch.no_grad():
            if self.lens.backend == "hooked":
                logits, state = self._read_hooked(tokens, new)
            else:
                logits, state = self._read_bridge(tokens, whole)
        return logits, replace(self, mask=whole, state=state)

    def select(self, rows: Sequence[int]) -> "Past":
        """The past of these rows; a row may come several times."""
        if self.mask is None:
            return replace(self, rows=len(rows))
        index = torch.tensor(list(rows), device=self.lens.device)
        state = _copied(self.state, self.lens.backend)
        if self.lens.backend == "hooked":
            state.previous_attention_mask = state.previous_attention_mask[index]
            for entry in state.entries:
                entry.past_keys, entry.past_values = entry.past_keys[index], entry.past_values[index]
        else:
            state.batch_select_indices(index)
        return replace(self, rows=len(rows), mask=self.mask[index], state=state)

    def _read_hooked(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Any]:
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        if self.state is None:
            state = TransformerLensKeyValueCache.init_cache(self.lens.model.cfg, self.lens.device, self.rows)
        else:
            state = _copied(self.state, "hooked")
        return self.lens.model(tokens, attention_mask=mask, past_kv_cache=state, return_type="logits"), state

    def _read_bridge(self, tokens: Tensor, whole: Tensor) -> tuple[Tensor, Any]:
        given = {} if self.state is None else {"past_key_values": _copied(self.state, "bridge")}
        logits, state = self.lens.model(
            tokens, attention_mask=whole, use_cache=True, return_type="logits_and_cache", **given
        )
        if not hasattr(state, "layers") or not all(hasattr(layer, "keys") for layer in state.layers):
            raise UnsupportedModelError(f"model {self.lens.name!r} has no cache of keys and values to go on from")
        return logits, state


def _copied(state: Any, backend: str) -> Any:
    """The cache with entries of its own; both backends put new tensors into them and never write into old ones."""
    copied = copy.copy(state)
    name = "entries" if backend == "hooked" else "layers"
    setattr(copied, name, [copy.copy(entry) for entry in getattr(state, name)])
    return copied
