"""Greedy generation on either backend."""

from collections import defaultdict
from collections.abc import Sequence

import torch

from ..errors import DemonstrationError
from .lens import Lens


def generate_greedily(
    lens: Lens, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, batch_size: int = 16
) -> list[list[int]]:
    """Greedy continuations with a KV cache, without their prompts and without EOS.

    Prompts of equal length are generated together, which needs no padding on any backend.

    Raises:
        DemonstrationError: prompt and continuation do not fit the model's context.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        if len(prompt) + max_new_tokens > lens.n_ctx:
            raise DemonstrationError(
                f"prompt {row} has {len(prompt)} tokens; with {max_new_tokens} new ones it exceeds the model's "
                f"context of {lens.n_ctx}"
            )
        by_length[len(prompt)].append(row)
    eos = lens.tokenizer.eos_token_id
    continuations: list[list[int]] = [[] for _ in prompts]
    for length, rows in by_length.items():
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            tokens = torch.tensor([list(prompts[row]) for row in chunk], device=lens.device)
            with torch.no_grad():
                generated = lens.model.generate(
                    tokens,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    stop_at_eos=eos is not None,
                    return_type="tokens",
                    verbose=False,
                )
            for row, continuation in zip(chunk, generated[:, length:].tolist(), strict=True):
                continuations[row] = continuation[: continuation.index(eos)] if eos in continuation else continuation
    return continuations
