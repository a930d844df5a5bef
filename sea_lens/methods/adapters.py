"""Fine-tuning with low-rank adapters (LoRA; Hu et al. 2021, arXiv 2106.09685; docs/method.md 5.6) as an edit.

The output projections of the MLPs, which write what a spectral edit changes by default, become W + α B A. The adapters
are trained by peft on the positive completions of the demonstrations; the negative ones are not seen.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, SupportsFloat, SupportsIndex

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer, as_number
from .._support.versions import versions
from ..edits.saved import SavedEdit, require
from ..edits.where import Defaults, LayerChoice, Where, choose_layers
from ..errors import InputError, MismatchError, MissingPackageError, UnsupportedModelError
from ..models.huggingface import load_huggingface, quiet
from ..models.lens import Lens
from ..models.standing import Change
from ..models.weight_changes import WeightChange, mlp_out_weight
from ..texts.demonstrations import Demonstrations
from ..texts.items import Demonstration
from .adapter_training import output_projections, train_adapters, training_examples


@dataclass(frozen=True)
class Adapter:
    """What is added to one projection: x → x + up (down h), peft's scaling in `up`.

    Attributes:
        down: A of the paper.
        up: B of the paper.
    """

    down: Float[Tensor, "rank d_mlp"]
    up: Float[Tensor, "d_model rank"]

    @property
    def product(self) -> Float[Tensor, "d_mlp d_model"]:
        """The change of the matrix that maps hidden units to the residual stream."""
        return einsum(self.down, self.up, "rank d_mlp, d_model rank -> d_mlp d_model")


@dataclass(frozen=True, eq=False, repr=False)
class LoRA(SavedEdit):
    """Adapters of MLP output projections, added with a strength for each layer: made by `lora`.

    Layers can be played against each other ("shapley", "leave_one_out", "only_one"). The weights change, so that there
    is no activation for the other analyses to look at.

    Attributes:
        adapters: of each layer.
        losses: mean loss of each epoch of training, nats per token.
    """

    combines: ClassVar[tuple[str, ...]] = ("add",)
    kind: ClassVar[str] = "LoRA edit"

    adapters: Mapping[int, Adapter]
    losses: tuple[float, ...]
    provenance: Mapping[str, Any]
    site: str = field(default="weights", init=False)
    defaults: Defaults = field(default=Defaults(), kw_only=True, repr=False)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.adapters))

    def __repr__(self) -> str:
        digest = hashlib.sha256()
        for layer in self.layers:
            for factor in (self.adapters[layer].down, self.adapters[layer].up):
                digest.update(factor.numpy().tobytes())
        ranks = {layer: len(self.adapters[layer].down) for layer in self.layers}
        return f"LoRA(ranks {ranks}, sha256 {digest.hexdigest()[:16]})"

    def check_model(self, model: Any) -> None:
        super().check_model(model)
        lens = Lens.of(model)
        for layer in self.layers:
            weight, rows_are_hidden = mlp_out_weight(lens, layer)
            found = tuple(weight.shape) if rows_are_hidden else tuple(weight.shape)[::-1]
            adapter = self.adapters[layer]
            expected = adapter.down.shape[1], adapter.up.shape[0]
            if found != expected:
                raise MismatchError(f"the adapters are for projections of shape {expected}, {lens.name!r} has {found}")

    def check_strengths(self, model: Any, where: Where, *, scoring: bool) -> None:
        if any(isinstance(alpha, Tensor) and alpha.ndim > 0 for alpha in where.strengths.values()):
            raise InputError("LoRA changes weights and not tokens: expected one strength for each layer")

    def changes(self, model: Any, where: Where) -> Sequence[Change]:
        additions = {
            layer: float(alpha) * self.adapters[layer].product for layer, alpha in where.strengths.items() if alpha != 0
        }
        lens = Lens.of(model)
        change = WeightChange(lens, additions)
        # These change nothing: that each is called in every pass proves that the changed weights are those in use.
        called = [lens.hook(lens.point("mlp_out", layer), change.proof(layer)) for layer in additions]
        return [*called, change]

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}.{layer}": getattr(adapter, name)
            for name in ("down", "up")
            for layer, adapter in self.adapters.items()
        }

    def facts(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> "LoRA":
        layers = sorted(int(name.split(".")[1]) for name in tensors if name.startswith("up."))
        adapters = {layer: Adapter(tensors[f"down.{layer}"], tensors[f"up.{layer}"]) for layer in layers}
        return cls(adapters, tuple(header["losses"]), header["provenance"])

    def check_content(self) -> None:
        for layer, adapter in self.adapters.items():
            shapes = tuple(adapter.down.shape), tuple(adapter.up.shape)
            fits = len(shapes[0]) == len(shapes[1]) == 2 and shapes[0][0] == shapes[1][1] > 0
            require(fits, f"the adapters of layer {layer} have shapes {shapes}")
        sizes = {(len(adapter.down), adapter.down.shape[1], len(adapter.up)) for adapter in self.adapters.values()}
        require(len(sizes) == 1, f"its layers have sizes {sorted(sizes)}")
        losses = all(isinstance(loss, float) and 0 <= loss < math.inf for loss in self.losses)
        require(losses, "a loss is no number")
        (rank, _, width), known = next(iter(sizes)), self.provenance
        require(known.get("rank", rank) == rank, f"its adapters have rank {rank}, not {known.get('rank')!r}")
        epochs = known.get("epochs", len(self.losses))
        require(epochs == len(self.losses), f"it has {len(self.losses)} losses of {epochs!r} epochs")
        of_model = known.get("model", {}).get("d_model", width)
        require(of_model == width, f"its adapters write {width} numbers, the model has {of_model!r}")


def lora(
    model: Any,
    demonstrations: Iterable[Demonstration],
    *,
    rank: SupportsIndex = 8,
    alpha: SupportsFloat = 16.0,
    learning_rate: SupportsFloat = 2e-4,
    epochs: SupportsIndex = 3,
    layers: LayerChoice = "all",
    batch_size: SupportsIndex = 8,
    seed: SupportsIndex = 0,
    progress: bool = True,
    prepend_bos: bool = True,
) -> LoRA:
    """Train adapters on the positive completions, by peft and AdamW.

    A second copy of the model is trained, in float32 on the same device; `model` itself is left alone.

    Args:
        model: a TransformerLens model that `load_model` loaded.
        demonstrations: the loss is that of the positive text's tokens after the neutral text, or of the whole positive
            text where it does not begin with the neutral one.
        rank, alpha: r and α of the paper; the adapters are scaled by α / r.
        learning_rate: of AdamW, constant.
        epochs: passes over the demonstrations, each in another order.
        layers: which layers, as in `choose_layers`.
        batch_size: demonstrations in a step.
        seed: of the adapters' initial weights and of the order.
        progress: show a progress bar.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.

    Returns:
        The edit: float32 adapters of each layer, on the CPU, and the mean loss of each epoch.

    Raises:
        MissingPackageError: the package peft is not installed.
        UnsupportedModelError: the model was not loaded by `load_model`, or its MLPs are of another kind.
        InputError: unknown layers or an option out of range.
        DemonstrationError: a text longer than the model's context; names it.
    """
    peft, lens = _library(), Lens.of(model)
    rank, epochs = as_integer(rank, "rank", least=1), as_integer(epochs, "epochs", least=1)
    batch_size, seed = as_integer(batch_size, "batch_size", least=1), as_integer(seed, "seed")
    alpha, learning_rate = as_number(alpha, "alpha"), as_number(learning_rate, "learning_rate")
    if not learning_rate > 0:
        raise InputError(f"learning_rate {learning_rate:g} is not above 0")
    chosen = choose_layers(layers, range(lens.n_layers))
    demonstrations = Demonstrations.of(demonstrations)
    if lens.source is None:
        raise UnsupportedModelError("LoRA trains a second copy of the model: expected one that `load_model` loaded")
    for layer in chosen:
        mlp_out_weight(lens, layer)
    examples = training_examples(lens, demonstrations, prepend_bos)

    with torch.random.fork_rng(devices=[lens.device] if lens.device.type == "cuda" else []):
        torch.manual_seed(seed)
        with quiet():
            hf_model = load_huggingface(lens.source, torch.float32)[0].to(lens.device)
            projections = output_projections(hf_model, lens)
            config = peft.LoraConfig(
                r=rank,
                lora_alpha=alpha,
                target_modules=[projections[layer] for layer in chosen],
                fan_in_fan_out=type(hf_model.get_submodule(projections[0])).__name__ == "Conv1D",
                task_type="CAUSAL_LM",
            )
            adapted = peft.get_peft_model(hf_model, config)
        losses = train_adapters(adapted, examples, learning_rate, epochs, batch_size, lens.device, progress)
    options = {"rank": rank, "alpha": alpha, "learning_rate": learning_rate, "epochs": epochs}
    provenance = {
        "model": lens.record,
        **options,
        "batch_size": batch_size,
        "seed": seed,
        "prepend_bos": prepend_bos,
        "demonstrations": [demonstrations.record],
        "versions": versions("peft"),
    }
    adapters = {layer: _adapter(adapted.base_model.model.get_submodule(projections[layer])) for layer in chosen}
    return LoRA(adapters, tuple(losses), provenance)


def _library() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingPackageError(
            "lora needs the package peft: install it with pip install 'sea-lens[lora]'"
        ) from error
    return peft


def _adapter(module: Any) -> Adapter:
    name = module.active_adapters[0]
    down, up = module.lora_A[name].weight, module.lora_B[name].weight
    return Adapter(down.detach().float().cpu(), (module.scaling[name] * up.detach()).float().cpu())
