"""A language model as texts, sites and results know it, whatever runs it."""

from abc import ABC, abstractmethod
from typing import Any

import torch

# What a record calls the sites that a norm stands in front of.
NORMS_BEHIND = "norms_behind"
# And some numbers of its embedding.
EMBEDDING = "embedding"


class LanguageModel(ABC):
    """What a TransformerLens model (`models.lens`), a vLLM engine and a plain Hugging Face model have in common."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What results call it."""

    @property
    @abstractmethod
    def n_layers(self) -> int:
        """Number of blocks."""

    @property
    @abstractmethod
    def d_model(self) -> int:
        """Width of the residual stream."""

    @property
    @abstractmethod
    def n_heads(self) -> int:
        """Query heads per block."""

    @property
    @abstractmethod
    def d_head(self) -> int:
        """Width of a head's `z`."""

    @property
    @abstractmethod
    def d_vocab(self) -> int:
        """Size of the vocabulary."""

    @property
    @abstractmethod
    def n_ctx(self) -> int:
        """Longest input that a caller can give, in tokens."""

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """The model's tokenizer.

        Raises:
            UnsupportedModelError: it has none.
        """

    @property
    @abstractmethod
    def ends(self) -> frozenset[int]:
        """Tokens that end a generated text."""

    @property
    @abstractmethod
    def processing(self) -> list[str]:
        """What has been done to the weights (`models.processing`); empty for weights as trained."""

    @property
    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What a saved result says of its model; JSON values."""

    @property
    @abstractmethod
    def embedding(self) -> list[float] | None:
        """Some numbers of its embedding (`models.embedding_numbers`), None where they cannot be read."""

    @property
    @abstractmethod
    def double_device(self) -> torch.device:
        """Where sums in float64 are kept."""

    @abstractmethod
    def point(self, name: str, layer: int) -> str:
        """What a site, or "resid_pre", is called in a layer.

        Raises:
            UnsupportedModelError: the model has nothing of the kind.
        """


def is_vllm_engine(model: Any) -> bool:
    """Whether this is what `vllm.LLM` gives; vLLM is not imported."""
    return any(one.__name__ == "LLM" and one.__module__.split(".")[0] == "vllm" for one in type(model).__mro__)


def is_plain(model: Any) -> bool:
    """Whether this is a model of transformers itself, with adapters or without; transformers is not imported."""
    return any(
        one.__name__ in ("PreTrainedModel", "PeftModel") and one.__module__.split(".")[0] in ("transformers", "peft")
        for one in type(model).__mro__
    )
