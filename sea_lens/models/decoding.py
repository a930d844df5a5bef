"""Continuing prompts on either backend, with a KV cache."""

from collections.abc import Sequence
from itertools import takewhile

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ActivationError, DemonstrationError
from .cache import Past
from .check import ensure_usable
from .language_model import LanguageModel
from .lens import Lens
from .sampling import GREEDY, Sampling
from .tokens import Batch, batches
from .vllm_engine import Engine

# Tokens of the prompt that a continuation is decoded with, so that its first token keeps its leading space.
_BESIDE = 8


def continue_prompts(
    lens: Lens | Engine,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    batch_size: int = 16,
    stop: Sequence[str] = (),
    sampling: Sampling = GREEDY,
) -> list[list[int]]:
    """Continuations in tokens, without their prompts and without EOS.

    A continuation ends at EOS, at another end token of the model's generation configuration, or with the token that
    completes one of the texts of `stop`, whatever number of tokens that text has.

    Raises:
        DemonstrationError: prompt and continuation do not fit the model's context.
        ActivationError: the model's logits are NaN, or all infinite; names the prompt.
        UnsupportedModelError, InputError: the model is not what it should be, or drops out units at random.
    """
    if isinstance(lens, Lens):
        ensure_usable(lens)
    for row, prompt in enumerate(prompts):
        if len(prompt) + max_new_tokens > lens.n_ctx:
            raise DemonstrationError(
                f"prompt {row} has {len(prompt)} tokens; with {max_new_tokens} new ones it exceeds the model's "
                f"context of {lens.n_ctx}"
            )
    if isinstance(lens, Engine):
        found = lens.continue_prompts(prompts, max_new_tokens, stop=stop, sampling=sampling)
        return [_ended(lens, *pair, stop) for pair in zip(prompts, found, strict=True)]
    continuations: list[list[int]] = [[] for _ in prompts]
    generators = sampling.generators(prompts)
    # Hooks that are not ours may count positions, which padding on the left would shift.
    for batch in batches(prompts, 1 if lens.has_foreign_hooks() else batch_size, left=True):
        of_rows = [generators[row] for row in batch.rows]
        alongside = [prompts[row] for row in batch.rows]
        found = _continued(lens, batch, alongside, max_new_tokens, stop, sampling, of_rows)
        for row, continuation in zip(batch.rows, found, strict=True):
            continuations[row] = continuation
    return continuations


def _continued(
    lens: Lens,
    batch: Batch,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: Sequence[str],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> list[list[int]]:
    """Continuations of a left-padded batch."""
    continuations: list[list[int]] = [[] for _ in batch.rows]
    going = list(range(len(batch.rows)))
    tokens, mask, past = batch.tokens, batch.mask, Past(lens, len(batch.rows))
    for _ in range(max_new_tokens):
        found, past = past.predict(tokens, mask)
        logits = found.last()
        _check_logits(logits, [batch.rows[row] for row in going])
        chosen = sampling.choose(logits, [generators[row] for row in going])
        still = []
        for place, (row, token) in enumerate(zip(going, chosen, strict=True)):
            if token in lens.ends:
                continue
            continuations[row].append(token)
            if not (stop and _has_stopped(lens, prompts[row], continuations[row], stop)):
                still.append(place)
        if not still:
            break
        if len(still) < len(going):
            past, going = past.select(still), [going[place] for place in still]
        tokens, mask = torch.tensor([[chosen[place]] for place in still]), None
    return continuations


def _check_logits(logits: Float[Tensor, "batch d_vocab"], rows: Sequence[int]) -> None:
    # A NaN among the logits is their largest one.
    largest = logits.max(-1).values
    for row, fine in zip(rows, torch.isfinite(largest).tolist(), strict=True):
        if not fine:
            raise ActivationError(f"prompt {row}: the model's logits for its next token are NaN or infinite")


def _ended(engine: Engine, prompt: Sequence[int], continuation: Sequence[int], stop: Sequence[str]) -> list[int]:
    """A continuation up to its end; an engine also gives the end token, and may see a stop text later."""
    kept = list(takewhile(lambda token: token not in engine.ends, continuation))
    lengths = range(1, len(kept) + 1) if stop else ()
    return kept[: next((n for n in lengths if _has_stopped(engine, prompt, kept[:n], stop)), len(kept))]


def _has_stopped(lens: LanguageModel, prompt: Sequence[int], continuation: Sequence[int], stop: Sequence[str]) -> bool:
    decoded = [
        decode_continuation(lens, prompt[-_BESIDE:], continuation, skip_special_tokens=skip) for skip in (True, False)
    ]
    return any(text in one for text in stop for one in decoded)


def decode_continuation(
    lens: LanguageModel, prompt: Sequence[int], continuation: Sequence[int], *, skip_special_tokens: bool = True
) -> str:
    """A continuation as text: decoded with its prompt and cut off it, since many tokenizers drop a leading space."""

    def decode(tokens: Sequence[int]) -> str:
        return lens.tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    whole = decode([*prompt, *continuation])
    # A prompt of tokens may end within a character, which its continuation completes.
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(whole, decode(prompt), strict=False))
    return whole[sum(1 for _ in shared) :]


def before_stop(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of the stop texts in it, which is left out with all that follows."""
    return text[: min([text.find(one) for one in stop if one in text], default=len(text))]
