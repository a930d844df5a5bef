"""A Hugging Face model by itself, with edits in it: no TransformerLens is imported (docs/method.md 12.1)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, UnsupportedModelError
from .configuration import context_length, text_config
from .configured import Configured
from .embedding_numbers import embedding_numbers
from .evaluation_mode import active_dropout
from .hooks import HookFunction
from .huggingface import load_tokenizer, quiet
from .language_model import EMBEDDING, NORMS_BEHIND, is_plain
from .lens import Lens, end_tokens
from .module_hooks import PlainHook
from .passes import Pass
from .plain_passes import PlainObserver
from .plain_sites import Place, blocks_of, sites_of
from .standing import Held, Standing

_KEPT_AS = "_sea_lens_plain"


class PlainModel(Configured):
    """A causal language model of transformers as edits see it.

    Attributes:
        model: the Hugging Face model; of one with adapters (peft) the model that they are in.
        observer: of the passes that it runs while something of sea_lens's stands in it.
        prefix_length: 0; nothing puts tokens in front of what this model reads.

    Raises:
        UnsupportedModelError: it is no causal language model of transformers, or cannot be run.
    """

    prefix_length = 0
    # It is its own reference: nothing was converted.
    checked = None

    def __init__(self, model: Any) -> None:
        self.model, self.text = model, text_config(model.config)
        if getattr(model.config, "is_encoder_decoder", False) or not hasattr(self.text, "num_hidden_layers"):
            raise UnsupportedModelError(f"{type(model).__name__} is no causal language model: expected one")
        found = blocks_of(model, self.n_layers)
        if found is None:
            raise UnsupportedModelError(f"{type(model).__name__} has no list of {self.n_layers} blocks to edit")
        self._path, self._blocks = found
        self.observer = PlainObserver(model, self.name, n_layers=self.n_layers)
        self._places: list[dict[str, Place]] | None = None

    @classmethod
    def of(cls, model: Any) -> "PlainModel":
        """The plain model of this Hugging Face model, made once."""
        inside = unwrapped(model)
        kept = vars(inside).get(_KEPT_AS)
        # A copy of a model has that of another, or None.
        if kept is None or kept.model is not inside:
            kept = vars(inside)[_KEPT_AS] = cls(inside)
        return kept

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Nothing stands in a copy of the model."""

    def __reduce__(self) -> Any:
        return type(None), ()

    @property
    def name(self) -> str:
        """The model's hub name, or the name of its folder or class."""
        name = str(getattr(self.model.config, "_name_or_path", "") or type(self.model).__name__)
        return Path(name).resolve().name if Path(name).is_dir() else name

    @property
    def n_ctx(self) -> int:
        """Longest text in tokens; a huge number where the configuration names none."""
        return context_length(self.model.config) or 2**31 - 1

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the name or folder that the model was loaded from.

        Raises:
            UnsupportedModelError: it was loaded from none, or there is no tokenizer there.
        """
        name = str(getattr(self.model.config, "_name_or_path", ""))
        if not name:
            raise UnsupportedModelError(f"model {self.name!r} was loaded from nowhere, so that it has no tokenizer")
        with quiet():
            return load_tokenizer(name)

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a generated text."""
        return end_tokens(self.model)

    @property
    def record(self) -> dict[str, Any]:
        """What a saved result says of its model; JSON values."""
        behind = [site for site in ("mlp_out", "attn_out") if any(_is_norm(at.get(site)) for at in self.places)]
        return {
            "name": self.name,
            "backend": "transformers",
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_heads": self.n_heads,
            "d_head": self.d_head,
            "processing": self.processing,
            NORMS_BEHIND: behind,
            EMBEDDING: self.embedding,
        }

    @property
    def embedding(self) -> list[float] | None:
        """Some numbers of its embedding (`embedding_numbers`)."""
        return embedding_numbers(self.model.get_input_embeddings().weight)

    @property
    def double_device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def layer_device(self, layer: int) -> torch.device:
        """Where a layer runs."""
        hook = getattr(self._blocks[layer], "_hf_hook", None)
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
        return next(self._blocks[layer].parameters()).device

    @property
    def places(self) -> list[dict[str, Place]]:
        """The places of the sites in each layer, found in one pass when they are first asked for.

        Raises:
            InputError: the model drops out units at random.
            UnsupportedModelError: it cannot be run on a few tokens, or its blocks do not run once each, in order.
        """
        if self._places is None or not self._are_there():
            self.refuse_dropout()
            try:
                with self.observer.set_aside():
                    found = sites_of(self.model, self._path, self._blocks)
            except Exception as error:
                reason = str(error).strip().splitlines() or [type(error).__name__]
                raise UnsupportedModelError(f"model {self.name!r} cannot be run: {reason[0]}") from error
            if len(found) != self.n_layers:
                raise UnsupportedModelError(
                    f"model {self.name!r} ran {len(found)} blocks of {self._path!r} in a pass: expected each of "
                    f"{self.n_layers} once"
                )
            self._places = found
        return self._places

    def _are_there(self) -> bool:
        """Whether the modules of the places are those that run: adapters may have been put around them since."""
        modules = dict(self.model.named_modules())
        return all(modules.get(one.path) is one.module for sites in self._places or () for one in sites.values())

    def refuse_dropout(self) -> None:
        """Refuse a model whose passes are random.

        Raises:
            InputError: it is in training mode, and has something to drop.
        """
        if (what := active_dropout(self.model)) is not None:
            raise InputError(
                f"the model drops out units at random ({what}): expected one in evaluation mode, model.eval()"
            )

    def place(self, name: str, layer: int) -> Place:
        """Where a site is in a layer.

        Raises:
            UnsupportedModelError: no modules of the block add up to what it gives, or heads are of another width.
        """
        place = self.places[layer].get(name)
        if place is None:
            raise UnsupportedModelError(
                f"block {layer} of model {self.name!r} ({type(self._blocks[layer]).__name__}) has no module whose "
                f"output is {name!r}: what it adds to the residual stream is not the sum of two of its modules: "
                f"expected an edit at 'resid_post', or another model"
            )
        return place

    def point(self, name: str, layer: int) -> str:
        """Path of the module at a site of a layer, with "(input)" where it is what that reads; errors as in `place`."""
        return self.place(name, layer).point

    def hook(self, name: str, function: HookFunction) -> PlainHook:
        """A hook that maps the activation at a place, by its name from `point`; not yet in the model."""
        for layer, sites in enumerate(self.places):
            for site, place in sites.items():
                if place.point == name:
                    return PlainHook(self.observer, layer, place, function, self.n_heads if site == "z" else None)
        raise InputError(f"model {self.name!r} has no place {name!r}")

    def hooks(self, functions: Iterable[tuple[str, HookFunction]]) -> Held:
        """Hooks for the length of a context; removed also when it ends in an exception."""
        held = Held(Standing(self.observer))
        held.standing.put([self.hook(name, function) for name, function in functions])
        return held

    def remove_all(self) -> None:
        """Take out whatever sea_lens has put into the model."""
        for standing in self.observer.inside():
            standing.remove()

    @property
    def told(self) -> Any:
        """How long the prompts of the passes to come are, where somebody knows (`models.token_positions`)."""
        return self.observer.told

    @told.setter
    def told(self, told: Any) -> None:
        self.observer.told = told

    @property
    def current_pass(self) -> Pass | None:
        """The pass that the model runs now, None between passes and while nothing of sea_lens's is in it."""
        return self.observer.current_pass


def unwrapped(model: Any) -> Any:
    """The Hugging Face model inside adapters, if any."""
    inside = getattr(model, "get_base_model", None)
    return model if inside is None else inside()


def host(model: Any) -> Lens | PlainModel:
    """What an edit is put into: a TransformerLens model, or a Hugging Face model by itself.

    Raises:
        UnsupportedModelError: it is neither.
    """
    return PlainModel.of(model) if is_plain(model) else Lens.of(model)


def _is_norm(place: Place | None) -> bool:
    return place is not None and "norm" in place.path.rsplit(".", 1)[-1].lower()
