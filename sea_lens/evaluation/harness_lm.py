"""The harness's model class over a TransformerLens model; imports lm_eval, so only `harness` may import it."""

import contextlib
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PretrainedConfig

from ..edits.base import Edit
from ..edits.where import Where
from ..errors import InputError
from ..models.decoding import continue_prompts
from ..models.lens import Lens
from ..models.token_positions import telling
from ..models.tokens import pad, tokenise


class _AsHuggingFace:
    """What `HFLM` asks of a Hugging Face model: a configuration, a device, and logits."""

    def __init__(self, lens: Lens) -> None:
        self.lens = lens
        self.device = lens.device
        self.config = PretrainedConfig()

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> SimpleNamespace:
        # The harness pads on the right, which no token of a causal model sees.
        return SimpleNamespace(logits=self.lens.forward(tokens, torch.ones_like(tokens)))


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
        # Of what is to be scored now: the lengths that the prompt of an input may have.
        self._prompts: dict[tuple[int, ...], set[int]] = {}
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

    def _model_call(
        self, inps: Int[Tensor, "batch pos"], attn_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Float[Tensor, "batch pos d_vocab"]:
        with torch.no_grad(), self._edited():
            if not self._prompts:
                return self.model(inps).logits  # type: ignore[operator]
            inputs = [self._input(row) for row in inps.tolist()]
            mask = pad(inputs)[1]
            with telling(self.lens, [self._prompt(tokens) for tokens in inputs]):
                return self.lens.forward(inps[:, : mask.shape[1]], mask)

    def _loglikelihood_tokens(
        self, requests: Iterable[tuple[Any, list[int], list[int]]], *args: Any, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """The harness's own, which says nothing of prompts to the model; an edit at some positions asks for them."""
        requests = list(requests)
        try:
            if self.where is not None and self.where.positions != "all":
                for _, context, continuation in requests:
                    room = int(self.max_length)  # type: ignore[attr-defined]
                    tokens = tuple((context + continuation)[-(room + 1) :][:-1])
                    prompt = max(len(tokens) - len(continuation) + 1, 0)
                    if self._whole_texts:
                        prompt = int(tokens[:1] == (self.prefix_token_id,))  # type: ignore[attr-defined]
                    self._prompts.setdefault(tokens, set()).add(prompt)
            return super()._loglikelihood_tokens(requests, *args, **kwargs)  # type: ignore[misc]
        finally:
            self._prompts = {}

    def _input(self, row: list[int]) -> tuple[int, ...]:
        """The input that a row is, without the harness's padding of zeros on the right."""
        padding = next((n for n, token in enumerate(reversed(row)) if token != 0), len(row))
        for length in range(len(row), len(row) - padding - 1, -1):
            if tuple(row[:length]) in self._prompts:
                return tuple(row[:length])
        raise InputError("the harness asks for other inputs than its requests have, so that prompts cannot be told")

    def _prompt(self, tokens: tuple[int, ...]) -> int:
        lengths = self._prompts[tokens]
        if len(lengths) > 1:
            raise InputError(
                f"the harness scores {len(tokens)} tokens at once as prompts of {sorted(lengths)} tokens: expected "
                f"positions 'all', or requests that are scored one by one"
            )
        return next(iter(lengths))

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
