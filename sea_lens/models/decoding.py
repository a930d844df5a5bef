"""Greedy generation on either backend."""

from collections.abc import Sequence

import torch

from ..errors import DemonstrationError
from .cache import Past
from .lens import Lens
from .tokens import Batch, batches

# Tokens that are decoded to find a stop text that ends in the newest one; one of more tokens is not found.
_TAIL = 48


def generate_greedily(
    lens: Lens,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    batch_size: int = 16,
    stop: Sequence[str] = (),
) -> list[list[int]]:
    """Greedy continuations with a KV cache, without their prompts and without EOS.

    A continuation ends at EOS, at another end token of the model's generation configuration, or with the token that
    completes one of the texts of `stop`.

    Raises:
        DemonstrationError: prompt and continuation do not fit the model's context.
    """
    for row, prompt in enumerate(prompts):
        if len(prompt) + max_new_tokens > lens.n_ctx:
            raise DemonstrationError(
                f"prompt {row} has {len(prompt)} tokens; with {max_new_tokens} new ones it exceeds the model's "
                f"context of {lens.n_ctx}"
            )
    continuations: list[list[int]] = [[] for _ in prompts]
    # Hooks that are not ours may count positions, which padding on the left would shift.
    for batch in batches(prompts, 1 if lens.has_foreign_hooks() else batch_size, left=True):
        for row, continuation in zip(batch.rows, _continued(lens, batch, max_new_tokens, stop), strict=True):
            continuations[row] = continuation
    return continuations


def _continued(lens: Lens, batch: Batch, max_new_tokens: int, stop: Sequence[str]) -> list[list[int]]:
    """Continuations of a left-padded batch."""
    tokenizer = lens.tokenizer
    continuations: list[list[int]] = [[] for _ in batch.rows]
    going = list(range(len(batch.rows)))
    tokens, mask, past = batch.tokens, batch.mask, Past(lens, len(batch.rows))
    for _ in range(max_new_tokens):
        logits, past = past.read(tokens, mask)
        chosen = logits[:, -1].argmax(-1).tolist()
        still = []
        for place, (row, token) in enumerate(zip(going, chosen, strict=True)):
            if token in lens.ends:
                continue
            continuations[row].append(token)
            tail = tokenizer.decode(continuations[row][-_TAIL:]) if stop else ""
            if not any(text in tail for text in stop):
                still.append(place)
        if not still:
            break
        if len(still) < len(going):
            past, going = past.select(still), [going[place] for place in still]
        tokens, mask = torch.tensor([[chosen[place]] for place in still]), None
    return continuations


def decode_continuation(lens: Lens, prompt: Sequence[int], continuation: Sequence[int]) -> str:
    """A continuation as text: decoded with its prompt and cut off it, since many tokenizers drop a leading space."""
    decode = lens.tokenizer.decode
    whole = decode([*prompt, *continuation], skip_special_tokens=True)
    return whole[len(decode(list(prompt), skip_special_tokens=True)) :]
