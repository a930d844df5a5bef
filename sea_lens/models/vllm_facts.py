"""What a vLLM engine's configuration says of its model; nothing is run."""

import importlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .configuration import context_length, text_config
from .configured import Configured
from .huggingface import load_tokenizer, quiet
from .language_model import EMBEDDING, NORMS_BEHIND
from .vllm_worker import Family


class EngineFacts(Configured):
    """An engine's model, as its configuration says.

    Args:
        config: the engine's `vllm_config`.

    Attributes:
        family: where the model has its activations.
    """

    family: Family

    def __init__(self, config: Any) -> None:
        self._model, self._scheduler = config.model_config, config.scheduler_config
        self.text = text_config(self._model.hf_config)

    @property
    def name(self) -> str:
        """The model's hub name, or the name of its folder."""
        name = str(self._model.model)
        return Path(name).resolve().name if Path(name).is_dir() else name

    @property
    def n_ctx(self) -> int:
        """Longest text in tokens, what is generated counted: the engine's `max_model_len`, or the model's context."""
        longest = int(self._model.max_model_len)
        return min(longest, context_length(self.text) or longest)

    @property
    def tokens_per_pass(self) -> int:
        """How many tokens the engine reads in one pass at most."""
        return int(self._scheduler.max_num_batched_tokens)

    @property
    def texts_per_pass(self) -> int:
        """How many texts the engine reads in one pass at most."""
        return int(self._scheduler.max_num_seqs)

    @property
    def tokenizer(self) -> Any:
        """The engine's tokenizer.

        Raises:
            UnsupportedModelError: it cannot be loaded.
        """
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Any:
        # As that of a TransformerLens model: vLLM's own may be of another class, with other tokens.
        with quiet():
            return load_tokenizer(str(self._model.tokenizer), self._model.tokenizer_revision)

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a generated text."""
        return self._ends

    @cached_property
    def _ends(self) -> frozenset[int]:
        given = self._model.try_get_generation_config().get("eos_token_id")
        eos = self.tokenizer.eos_token_id
        more = [given] if isinstance(given, int) else given or ()
        return frozenset(more) | ({eos} if eos is not None else set())

    @property
    def record(self) -> dict[str, Any]:
        """What a saved result says of its model; JSON values."""
        return {
            "name": self.name,
            "backend": "vllm",
            "vllm": importlib.import_module("vllm").__version__,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_heads": self.n_heads,
            "d_head": self.d_head,
            "processing": self.processing,
            NORMS_BEHIND: self.family.norms_behind,
            EMBEDDING: self.embedding,
        }

    @property
    def double_device(self) -> torch.device:
        """The CPU, where all that is read arrives."""
        return torch.device("cpu")

    def point(self, name: str, layer: int) -> str:
        """Path of the module that gives a site's activation: "mlp_out", "attn_out" or "resid_post".

        Raises:
            UnsupportedModelError: another site.
        """
        return self.family.point(name, layer)
