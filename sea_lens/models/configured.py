"""What a Hugging Face configuration says of a model, whatever runs it."""

from typing import Any

from .language_model import LanguageModel


class Configured(LanguageModel):
    """A model whose sizes are those of its configuration, and whose weights are as trained.

    Attributes:
        text: the part of the configuration that the language model goes by (`configuration.text_config`).
    """

    text: Any

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return int(self.text.num_hidden_layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.text.hidden_size)

    @property
    def n_heads(self) -> int:
        """Query heads per block, those of all devices together."""
        return int(self.text.num_attention_heads)

    @property
    def d_head(self) -> int:
        """Width of a head's `z`."""
        return int(getattr(self.text, "head_dim", None) or self.d_model // self.n_heads)

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return int(self.text.vocab_size)

    @property
    def processing(self) -> list[str]:
        """Nothing: weights as trained."""
        return []
