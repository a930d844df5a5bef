"""HookedTransformer (TransformerLens 3.9) and TransformerBridge (3.9, 4.x) behind one face."""

import copy
from typing import Any

from ..errors import UnsupportedModelError
from .configuration import context_length
from .embedding_numbers import embedding_numbers
from .hook_points import HookPoints
from .hookable import Hookable
from .hooks import HookFunction
from .language_model import EMBEDDING, NORMS_BEHIND, LanguageModel, is_plain, is_vllm_engine
from .parts import FINAL_NORM
from .passes import Observer, Pass
from .processing import processing

__all__ = ["FINAL_NORM", "HookFunction", "Lens", "end_tokens"]

_KEPT_AS = "_sea_lens"
# Hook points that every backend has, by what sea_lens calls them.
_POINTS = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "q": "blocks.{}.attn.hook_q",
    "k": "blocks.{}.attn.hook_k",
    "v": "blocks.{}.attn.hook_v",
    "attn_scores": "blocks.{}.attn.hook_attn_scores",
    "z": "blocks.{}.attn.hook_z",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "resid_post": "blocks.{}.hook_resid_post",
}


def end_tokens(hf_model: Any) -> frozenset[int]:
    """The tokens at which a Hugging Face model's generation configuration ends a text."""
    given = getattr(getattr(hf_model, "generation_config", None), "eos_token_id", None)
    return frozenset([given] if isinstance(given, int) else given or ())


class Lens(Hookable, LanguageModel):
    """A TransformerLens model as the rest of sea_lens sees it.

    Attributes:
        model: the TransformerLens model itself.
        own_tokenizer: the tokenizer that the model came with, where `load_model` kept it. That of TransformerLens may
            differ: tokens are added to it, and where it has no BOS its EOS becomes one.
        prefixes: what now stands in front of every sequence without the caller's knowledge (`models.prefix`).
        more_ends: tokens besides EOS that end a text, as the model's generation configuration has them.
        source: the Hugging Face name or folder that `load_model` read, None where it did not load the model.
        changed_weights: by the weight's id, a changed weight's original values and what is added to them
            (`models.weight_changes`).
        points: the hook points by name.
        observer: of the passes that the model runs while something of sea_lens's stands in it.
        cached_readings: how the model may read with a cache, once it was measured (`models.cache_probe`).
        context: the longest text that the Hugging Face configuration allows, None where there is none at hand.
        checked: what the check of the model found (`models.check`), None before it.
        trusted: whether the user asked `load_model` for no check.
        unmatched: names of weights that only one of the folder and the model has, where `load_model` read them.
        unembedding_kept: how logits are made, once it was measured (`models.unembedding`).
    """

    def __init__(self, model: Any) -> None:
        # By name, since importing torch's compiler takes long.
        if any(one.__name__ == "OptimizedModule" for one in type(model).__mro__):
            raise UnsupportedModelError(
                "the model is compiled (torch.compile), and compiled code passes by the hooks that edits and "
                "measurements need: expected the model that was compiled"
            )
        if is_vllm_engine(model):
            raise UnsupportedModelError(
                "a vLLM engine captures (sl.capture) and generates (sl.generate), and all else needs a TransformerLens "
                "model: expected one, as sl.load_model loads from the engine's checkpoint"
            )
        if is_plain(model):
            raise UnsupportedModelError(
                f"{type(model).__name__} is a plain Hugging Face model, which edits can be put into (sl.hf.applied), "
                f"and all else needs a TransformerLens model: expected one, as sl.load_model loads from the same name "
                f"or folder"
            )
        for name in ("hook_dict", "cfg", "blocks"):
            if not hasattr(model, name):
                raise UnsupportedModelError(
                    f"expected a TransformerLens model (HookedTransformer or TransformerBridge), "
                    f"got {type(model).__name__}"
                )
        self.model = model
        self.own_tokenizer: Any = None
        self.prefixes = []
        self.source: str | None = None
        self.more_ends = end_tokens(getattr(model, "original_model", None))
        self.changed_weights: dict[int, Any] = {}
        self.observer = Observer(model, self.name)
        self.points = HookPoints(model)
        self.cached_readings: dict[Any, Any] = {}
        config = getattr(getattr(model, "original_model", None), "config", None)
        self.context = context_length(config)
        self.checked: Any = None
        self.trusted = False
        self.unmatched: Any = None
        self.unembedding_kept: Any = None

    @classmethod
    def of(cls, model: Any) -> "Lens":
        """The lens of this model, made once: listing a bridge's hook points takes much longer than using one."""
        # Kept on the model, past its __setattr__, so that the two live and die together.
        kept = getattr(model, "__dict__", {})
        # A shallow copy of a model has the lens of another.
        if _KEPT_AS not in kept:
            # Of two threads at once, both get the first one's.
            kept.setdefault(_KEPT_AS, cls(model))
        elif kept[_KEPT_AS].model is not model:
            kept[_KEPT_AS] = cls(model)
        return kept[_KEPT_AS]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Lens":
        """The lens of a copy of the model, in which nothing stands."""
        copied = object.__new__(Lens)
        memo[id(self)] = copied
        vars(copied).update(vars(self))
        copied.model = copy.deepcopy(self.model, memo)
        copied.points = HookPoints(copied.model, self.points.names)
        copied.observer = Observer(copied.model, self.name)
        copied.prefixes, copied.changed_weights = [], {}
        copied.cached_readings = dict(self.cached_readings)
        return copied

    @property
    def n_ctx(self) -> int:
        """Longest input that a caller can give, in tokens; a prefix takes its length away."""
        return (self.context or int(self.model.cfg.n_ctx)) - self.prefix_length

    @property
    def told(self) -> Any:
        """How long the prompts of the passes to come are, where somebody knows (`models.token_positions`)."""
        return self.observer.told

    @told.setter
    def told(self, told: Any) -> None:
        self.observer.told = told

    @property
    def current_pass(self) -> Pass | None:
        """The forward pass that the model runs now, None between passes and while nothing of sea_lens's is in it."""
        return self.observer.current_pass

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer.

        Raises:
            UnsupportedModelError: it has none.
        """
        tokenizer = self.own_tokenizer or getattr(self.model, "tokenizer", None)
        if tokenizer is None:
            raise UnsupportedModelError(f"model {self.name!r} has no tokenizer, so texts cannot be read")
        return tokenizer

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a generated text."""
        eos = self.tokenizer.eos_token_id
        return self.more_ends | ({eos} if eos is not None else set())

    @property
    def processing(self) -> list[str]:
        """What has been done to the weights, as measured on them."""
        return processing(self.model)

    @property
    def record(self) -> dict[str, Any]:
        """What a saved result says of its model; JSON values."""
        return {
            "name": self.name,
            "backend": self.backend,
            "dtype": str(self.dtype).removeprefix("torch."),
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_heads": self.n_heads,
            "d_head": self.d_head,
            "processing": self.processing,
            NORMS_BEHIND: self.norms_behind,
            EMBEDDING: self.embedding,
        } | ({} if self.checked is None else {"check": self.checked.record})

    @property
    def embedding(self) -> list[float] | None:
        """Some numbers of its embedding."""
        try:
            return embedding_numbers(self.model.W_E)
        # A bridge raises whatever its parts do where they have no such weight.
        except Exception:
            return None

    def point(self, name: str, layer: int) -> str:
        """Hook point of a layer: "resid_pre", "q", "k", "v", "attn_scores", "z", "attn_out", "mlp_out" or "resid_post".

        Raises:
            UnsupportedModelError: this model has no such hook point.
        """
        point = _POINTS[name].format(layer)
        if not self.has_site(name, layer):
            raise UnsupportedModelError(
                f"model {self.name!r} has no hook point {point!r}, so site {name!r} cannot be used"
            )
        return point

    def has_site(self, name: str, layer: int) -> bool:
        """Whether a layer has what `point` names, and a hook point there."""
        # TransformerLens gives a block without an MLP its hook point all the same, at which nothing ever comes by.
        if name == "mlp_out" and self.backend == "hooked" and bool(getattr(self.model.cfg, "attn_only", False)):
            return False
        return self.has_point(_POINTS[name].format(layer))
