"""Greedy continuations as text, with and without an edit."""

import contextlib
from collections.abc import Sequence
from typing import Any

from .._support.arguments import as_integer
from ..models.decoding import decode_continuation, generate_greedily
from ..models.lens import Lens
from ..models.tokens import encode
from .base import Edit
from .where import LayerChoice, Strength


def generate(
    model: Any,
    prompts: str | Sequence[str],
    edit: Edit | None = None,
    layers: LayerChoice = "all",
    strength: Strength = 1.0,
    combine: str | None = None,
    *,
    max_new_tokens: int = 32,
    prepend_bos: bool = True,
    batch_size: int = 16,
) -> list[str]:
    """Greedy continuations of prompts, decoded with a KV cache under the edit, up to EOS or another end token.

    Args:
        model: a TransformerLens model.
        prompts: one text or several.
        edit: the edit to apply, none by default.
        layers, strength, combine: as in `Edit.applied`.
        max_new_tokens: longest continuation in tokens.
        prepend_bos: one BOS in front of every prompt, where the tokenizer has one.
        batch_size: prompts at a time.

    Returns:
        One continuation for each prompt, without the prompt.

    Raises:
        DemonstrationError: a prompt without tokens, or one that does not fit the model's context with its continuation.
        InputError: `max_new_tokens` or `batch_size` is below 1.
        Otherwise as `Edit.applied`.

    Example:
        >>> prompts = ["Q: what is the river of Delkeld ? A:", "Q: what is the mountain of Delvath ? A:"]
        >>> sl.generate(bed.model, prompts, max_new_tokens=1)
        [' Selwyn', ' Nerith']
    """
    batch_size = as_integer(batch_size, "batch_size", least=1)
    max_new_tokens = as_integer(max_new_tokens, "max_new_tokens", least=1)
    lens = Lens.of(model)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    tokens = [encode(lens, text, prepend_bos=prepend_bos, what=f"prompt {i}") for i, text in enumerate(texts)]
    context = edit.applied(model, layers, strength, combine) if edit is not None else contextlib.nullcontext()
    with context:
        continuations = generate_greedily(lens, tokens, max_new_tokens, batch_size=batch_size)
    return [decode_continuation(lens, *pair) for pair in zip(tokens, continuations, strict=True)]
