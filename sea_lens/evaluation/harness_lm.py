"""The harness's model class over a TransformerLens model; imports lm_eval, so only `harness` may import it."""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PretrainedConfig

from .._support.progress import tracked
from ..edits.base import Edit
from ..edits.where import Where
from ..errors import InputError
from ..measure.shared_prompts import scores
from ..measure.spans import Span
from ..models.decoding import continue_prompts
from ..models.lens import Lens
from ..models.tokens import pad, tokenise

# Batches between two steps of the progress bar.
_TOGETHER = 16


class _AsHuggingFace:
    """What `HFLM` asks of a Hugging Face model: a configuration and a device."""

    def __init__(self, lens: Lens) -> None:
        self.device = lens.device
        self.config = PretrainedConfig()


class EditedLM(HFLM):
    """`HFLM` whose forward passes run in TransformerLens, under an edit.

    Args:
        model: a TransformerLens model.
        edit: the edit, None for the unedited model.
        where: as the edit's `check` gave it, None without an edit.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
    """

    tokenizer: Any

    def __init__(self, model: Any, edit: Edit | None, where: Where | None, batch_size: int, prepend_bos: bool) -> None:
        self.lens, self.edit, self.where, self.prepend_bos = Lens.of(model), edit, where, prepend_bos
        # The harness gives rolling log-likelihoods a token in front itself.
        self._whole_texts = False
        with self._edited():
            room = self.lens.n_ctx
        options: dict[str, Any] = {
            "pretrained": _AsHuggingFace(self.lens),
            "backend": "causal",
            "tokenizer": self.lens.tokenizer,
            "batch_size": batch_size,
            "max_length": room,
        }
        super().__init__(**options)

    def _edited(self) -> contextlib.AbstractContextManager[Any]:
        if self.edit is None or self.where is None:
            return contextlib.nullcontext()
        return self.edit.put(self.lens.model, self.where)

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Tokens as sea_lens reads a text."""
        with_bos = self.prepend_bos and add_special_tokens is not False and not self._whole_texts
        tokens = tokenise(self.lens, string, prepend_bos=with_bos)
        return tokens[-left_truncate_len:] if left_truncate_len else tokens

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, one BOS in front."""
        self._whole_texts = True
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)  # type: ignore[call-arg]
        finally:
            self._whole_texts = False

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """A padded batch of texts and its mask."""
        rows = [self.tok_encode(text, left_truncate_len=left_truncate_len) for text in strings]
        return pad(rows, left=padding_side == "left")

    def _loglikelihood_tokens(
        self,
        requests: Iterable[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation behind its context, and whether it is what the model would say itself.

        In place of the harness's own, which makes logits over the vocabulary at every position, and says nothing of
        prompts to the model.
        """
        requests = list(requests)
        found: list[tuple[float, bool]] = []
        size = override_bs or int(self.batch_size)  # type: ignore[attr-defined]
        parts = [requests[start : start + _TOGETHER * size] for start in range(0, len(requests), _TOGETHER * size)]
        for part in tracked(parts, "log-likelihoods", len(parts), show=not disable_tqdm):
            contexts: dict[tuple[int, ...], int] = {}
            items = [contexts.setdefault(tuple(context), len(contexts)) for _, context, _ in part]
            spans = [self._span(context, continuation) for _, context, continuation in part]
            with self._edited():
                log_probs, greedy = scores(self.lens, spans, items, batch_size=size)
            answers = list(zip(log_probs.tolist(), greedy.tolist(), strict=True))
            for (asked, _, _), answer in zip(part, answers, strict=True):
                # Parts of whole texts have no name to be kept under.
                if asked is not None:
                    self.cache_hook.add_partial("loglikelihood", asked, answer)
            found += answers
        return found

    def _span(self, context: list[int], continuation: list[int]) -> Span:
        """What the harness asks for, cut at its left end to fit the context as the harness does."""
        room = int(self.max_length)  # type: ignore[attr-defined]
        tokens = tuple((context + continuation)[-(room + 1) :])
        start = len(tokens) - len(continuation)
        if self._whole_texts:
            return Span(tokens, start, int(tokens[:1] == (self.prefix_token_id,)))  # type: ignore[attr-defined]
        return Span(tokens, start)

    def _model_generate(
        self, context: Int[Tensor, "batch pos"], max_length: int, stop: Sequence[str], **generation_kwargs: Any
    ) -> Int[Tensor, "batch longer"]:
        if generation_kwargs.get("do_sample") or generation_kwargs.get("temperature", 0.0) != 0.0:
            raise InputError("an edited model in the harness generates greedily: set do_sample and temperature to 0")
        mask = generation_kwargs["attention_mask"].bool()
        prompts = [row[kept].tolist() for row, kept in zip(context, mask, strict=True)]
        with self._edited():
            found = continue_prompts(self.lens, prompts, max_length - context.shape[1], stop=stop)
        longest = max(map(len, found))
        pad = self.tokenizer.pad_token_id
        rows = [
            [*row.tolist(), *more, *[pad] * (longest - len(more))] for row, more in zip(context, found, strict=True)
        ]
        return torch.tensor(rows, device=context.device)
