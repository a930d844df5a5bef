"""A model of a configuration, with the sizes of all of its tensors and no numbers in them (torch's meta device).

TransformerLens makes it as it makes any other, so that the code that runs a model runs this one too (`live_bytes`).
Models of two and of three layers tell what a deep one takes, since every layer beyond adds the same.
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UnsupportedModelError
from ..models.attention import fuse
from ..models.cache_probe import take_as_exact
from ..models.configuration import text_config
from ..models.conversion import as_bridge, as_hooked
from ..models.huggingface import failures_named, quiet
from ..models.lens import Lens
from ..models.load import hooked_available
from ..models.unembedding import Unembedding
from ..testbed.bed import PATH as TESTBED
from .live_bytes import counted

_DEPTHS = (2, 3)
_MAKERS = {"hooked": as_hooked, "bridge": as_bridge}


@dataclass(frozen=True)
class EmptyModel:
    """A model without numbers, made in a few depths.

    Attributes:
        config: Hugging Face's, of the whole model.
        dtype: of the weights.
        n_layers: of the whole model.
        parameters: how many numbers its weights are.
        largest: numbers of the largest of them.
        lenses: models of fewer layers, or the whole one where that has few.
    """

    config: Any
    dtype: torch.dtype
    n_layers: int
    parameters: int
    largest: int
    lenses: Sequence[Lens]

    @classmethod
    def of(cls, config: Any, backend: str, dtype: torch.dtype, tokenizer: Any = None) -> "EmptyModel":
        """The model of a configuration; `backend` as in `load_model`, any tokenizer where none is given.

        Raises:
            UnsupportedModelError: Hugging Face or TransformerLens cannot make it.
        """
        from transformers import AutoTokenizer

        name, n_layers = str(getattr(config, "name_or_path", "") or config.model_type), _layers_of(config)
        beside = AutoTokenizer.from_pretrained(TESTBED) if tokenizer is None else tokenizer
        with quiet(), torch.inference_mode(False), failures_named(name):
            sizes = [parameter.numel() for parameter in _huggingface(config, dtype).parameters()]
        kinds = [kind for kind in ("hooked", "bridge") if backend in (kind, "auto")]
        if not hooked_available() and kinds[0] == "hooked":
            kinds = kinds[1:]
        if not kinds:
            raise UnsupportedModelError("this TransformerLens has no HookedTransformer (removed in 4.0): use 'bridge'")
        for kind in kinds:
            try:
                depths = _DEPTHS if n_layers > max(_DEPTHS) else (n_layers,)
                lenses = [_lens(name, _cut(config, depth), kind, dtype, beside) for depth in depths]
                return cls(config, dtype, n_layers, sum(sizes), max(sizes), lenses)
            except UnsupportedModelError:
                if kind == kinds[-1]:
                    raise
        raise AssertionError("one backend returns or raises")

    @property
    def lens(self) -> Lens:
        """One of the models: like the whole one in all but the number of layers."""
        return self.lenses[0]

    @property
    def backend(self) -> str:
        """Which of TransformerLens's two kinds of model it is."""
        return self.lens.backend

    @property
    def weights(self) -> int:
        """Bytes of the model in memory: its weights, and the tables that TransformerLens keeps beside them."""
        own = self.parameters * self.dtype.itemsize
        of_config = [
            sum(one.numel() for one in _huggingface(_cut(self.config, lens.n_layers), self.dtype).parameters())
            for lens in self.lenses
        ]
        more = [
            sum(one.numel() * one.element_size() for one in _tensors(lens)) - numbers * self.dtype.itemsize
            for lens, numbers in zip(self.lenses, of_config, strict=True)
        ]
        return own + self._deepened(more, self.n_layers)

    def most(self, run: Callable[[Lens], object], layers: int | None = None) -> int:
        """The most bytes that are alive at once beside the weights, while something is run.

        Args:
            run: given the model.
            layers: how many layers it is run for, as many as the model has by default.
        """
        found = []
        for lens in self.lenses:
            with counted(_tensors(lens)) as live:
                run(lens)
            found.append(live.most)
        return self._deepened(found, self.n_layers if layers is None else layers)

    def passes(self, run: Callable[[Lens], object]) -> tuple[int, int]:
        """How many passes something makes, and how many tokens they read; as many as in a model of any depth."""
        with counted(_tensors(self.lens), _embedding(self.lens)) as live:
            run(self.lens)
        return live.passes, live.tokens

    def _deepened(self, values: Sequence[int], layers: int) -> int:
        """A value for so many layers, from those of the models that were made."""
        if len(values) == 1:
            return values[0]
        (shallow, low), (deep, high) = ((one.n_layers, value) for one, value in zip(self.lenses, values, strict=True))
        return max(0, low + round((high - low) / (deep - shallow) * (layers - shallow)))


def _tensors(lens: Lens) -> list[torch.Tensor]:
    return [*lens.model.parameters(), *lens.model.buffers()]


def _embedding(lens: Lens) -> torch.Tensor:
    """The weight that tokens are looked up in."""
    if lens.backend == "hooked":
        return lens.model.embed.W_E
    return lens.model.original_model.get_input_embeddings().weight


def _huggingface(config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, attn_implementation="eager")


def _lens(name: str, config: Any, kind: str, dtype: torch.dtype, tokenizer: Any) -> Lens:
    """The lens of a model; what is measured of others is taken for granted of it."""
    with quiet(), torch.inference_mode(False), tempfile.TemporaryDirectory() as folder:
        hf_model = _huggingface(config, dtype)
        config.architectures = [type(hf_model).__name__]
        hf_model.config.architectures = config.architectures
        # TransformerLens reads the configuration anew.
        config.save_pretrained(folder)
        with failures_named(name):
            try:
                with torch.device("meta"):
                    model = _MAKERS[kind](folder, hf_model, copy.deepcopy(tokenizer), dtype)
            except UnsupportedModelError:
                # Weights that TransformerLens takes apart must be somewhere; they take no memory until they are used.
                hf_model = hf_model.to_empty(device="cpu")
                model = _MAKERS[kind](folder, hf_model, copy.deepcopy(tokenizer), dtype).to("meta")
    model = model.eval().requires_grad_(False)
    if kind == "bridge":
        fuse(model)
    lens = Lens.of(model)
    lens.trusted, lens.own_tokenizer, lens.more_ends = True, tokenizer, frozenset()
    take_as_exact(lens)
    Unembedding.take_as_plain(lens)
    return lens


def _layers_of(config: Any) -> int:
    return int(text_config(config).num_hidden_layers)


def _cut(config: Any, layers: int) -> Any:
    """The configuration of a model that ends behind so many layers."""
    whole, config = _layers_of(config), copy.deepcopy(config)
    part = text_config(config)
    for name, value in list(vars(part).items()):
        # What is said of each layer.
        if isinstance(value, (list, tuple)) and len(value) == whole:
            setattr(part, name, value[:layers])
    part.num_hidden_layers = layers
    return config
