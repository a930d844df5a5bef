"""Parts of the vocabulary in which logits are made one after the other, so that few of them are there at once."""

from collections.abc import Iterator
from contextvars import ContextVar

import torch

# Logits that are made at a time, by kind of device: enough to keep the processor busy, and on a CPU few enough to stay
# near it.
LOGITS_AT_ONCE = {"cpu": 2**21, "cuda": 2**25}
# The kind of device that tensors without numbers stand for, while a plan counts them.
stands_for: ContextVar[str] = ContextVar("stands_for", default="cuda")


def vocabulary_parts(n: int, d_vocab: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Where the parts begin and end in which n rows of logits are made."""
    kind = stands_for.get() if device.type == "meta" else device.type
    numbers = LOGITS_AT_ONCE.get(kind, LOGITS_AT_ONCE["cuda"])
    width = min(d_vocab, max(256, numbers // max(n, 1)))
    return ((start, min(start + width, d_vocab)) for start in range(0, d_vocab, width))
