"""An edit written into the weights of a plain Hugging Face model (docs/method.md 12.4)."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError, UnsupportedModelError
from ..models.language_model import is_plain
from ..models.lens import Lens
from ..models.plain_model import PlainModel
from ..models.projections import give_biases, logits_of, projection_of, write_map
from ..models.reference import Probe, unwrapped
from ..models.tokens import encode
from ..texts.items import Demonstration
from .affine import Affine, affine_map
from .in_model import installed

if TYPE_CHECKING:
    from .where import Where

# Largest deviation of logits from those of the edited model, relative to the largest, as where models are checked.
_LIMITS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Fold:
    """What was written into the weights of a model; found as `sea_lens_fold` on the model.

    Attributes:
        edit: the affine edit that the weights hold, for `sl.effect` and all else that measures edits.
        scales: what each layer's sum of projections is multiplied by in place of the norm; None for an exact fold.
        deviation: largest difference of logits from those of the edited model, of the largest logit.
        kl: mean of KL(edited ‖ folded) over the tokens of the texts, in nats; None without texts.
    """

    edit: Affine
    scales: Mapping[int, float] | None
    deviation: float
    kl: float | None

    @property
    def is_exact(self) -> bool:
        """Whether the weights do what the edit does, up to rounding."""
        return self.scales is None

    def __str__(self) -> str:
        kl = "" if self.kl is None else f", KL to the edited model {self.kl:.3g} nats a token"
        if self.is_exact:
            return f"exact: logits as those of the edited model to {self.deviation:.1e} of the largest{kl}"
        scales = ", ".join(f"{layer}: {scale:.3f}" for layer, scale in (self.scales or {}).items())
        return f"not exact, since no weights keep norms; scale of each layer {scales}{kl}"


def fold(edit: Any, model: Any, where: "Where", texts: Iterable[Any] | None, *, in_place: bool) -> Any:
    """`SavedActivationEdit.fold` with its layers, strengths and way to combine chosen."""
    if where.positions != "all":
        raise InputError(
            f"weights act at all positions, and the edit acts at {where.positions!r}: expected positions='all', which "
            f"for most edits is another edit"
        )
    hf_model, rows = _huggingface(model, in_place=in_place), None
    plain = PlainModel.of(hf_model)
    edit.check_model(hf_model)
    for layer in where.layers:
        projection_of(plain, edit.site, layer)
    exact = _exact_maps(edit, where)
    if exact is None and texts is None:
        raise InputError(
            f"combine {where.combine!r} keeps the length of every activation, which no weights do: expected "
            f"combine='average', or demonstrations= to fit the best scale of each layer to"
        )
    if texts is not None:
        rows = _rows(model if not is_plain(model) else hf_model, texts)
    both = Probe.of(plain.d_vocab, plain.n_ctx)
    probe = [row[kept.bool()].tolist() for row, kept in zip(both.tokens, both.mask, strict=True)]
    with edit.put(hf_model, where):
        expected = logits_of(hf_model, [*probe, *(rows or [])])
    maps, scales = (exact, None) if exact is not None else _scaled_maps(edit, hf_model, where, rows or [])
    written = Affine(edit.site, maps, plain.n_layers)
    held = expected
    if exact is None:
        with written.put(hf_model, written.where()):
            held = logits_of(hf_model, [*probe, *(rows or [])])
    undo = []
    try:
        if _needs_biases(plain, edit.site, maps):
            undo.append(give_biases(plain, edit.site, list(where.layers)))
        for layer, (matrix, offset) in maps.items():
            undo.append(write_map(plain, edit.site, layer, matrix, offset))
        found = logits_of(hf_model, [*probe, *(rows or [])])
        off, limit = _apart(found, held), _LIMITS.get(hf_model.dtype, 1e-1)
        if not off <= limit:
            raise UnsupportedModelError(
                f"folded into the weights of {plain.name!r} the edit gives other logits than it gives in the model: "
                f"off by {off:.1e} of the largest (expected {limit:.0e})"
            )
    except BaseException:
        # The user's own model may be the one that is written into.
        for one in reversed(undo):
            one()
        raise
    deviation = _apart(found, expected)
    kl = None if rows is None else _divergence(expected[len(probe) :], found[len(probe) :])
    hf_model.sea_lens_fold = Fold(written, scales, deviation, kl)
    return hf_model


def _apart(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference of logits, of the largest logit."""
    apart = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    return apart / max(float(one.abs().max()) for one in expected)


def _needs_biases(plain: PlainModel, site: str, maps: Mapping[int, tuple[Tensor, Tensor]]) -> bool:
    """Whether an offset has no bias to go to."""
    offsets = any(bool(offset.any()) for _, offset in maps.values())
    return offsets and any(projection_of(plain, site, layer)[1].bias is None for layer in maps)


def _huggingface(model: Any, *, in_place: bool) -> Any:
    """The Hugging Face model to write into; a copy, unless it is to be changed itself.

    Raises:
        InputError: something stands in the model.
        UnsupportedModelError: a HookedTransformer whose Hugging Face model is not known.
    """
    if installed(model):
        raise InputError(f"an edit stands in the model already: {installed(model)}: expected one with nothing in it")
    if is_plain(model):
        if hasattr(model, "get_base_model") or any(hasattr(one, "base_layer") for one in model.modules()):
            raise UnsupportedModelError(
                "the model has adapters, beside which nothing is saved of its own weights: expected them merged "
                "(merge_and_unload)"
            )
        return model if in_place else copy.deepcopy(model)
    lens = Lens.of(model)
    if lens.processing:
        raise UnsupportedModelError(f"the weights of {lens.name!r} are processed ({', '.join(lens.processing)})")
    if lens.backend == "bridge":
        return _as_configured(copy.deepcopy(unwrapped(model)).eval())
    if lens.source is None:
        raise UnsupportedModelError(
            f"where the weights of {lens.name!r} came from is not known: expected a model that sl.load_model loaded, "
            f"or the Hugging Face model"
        )
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(lens.source, dtype=lens.dtype)
    loaded = loaded.to(lens.device).eval()
    probe = Probe.of(lens.d_vocab, lens.n_ctx)
    with torch.no_grad():
        ours = lens.forward(probe.tokens[:1], torch.ones_like(probe.tokens[:1]))[0].float().cpu()
    (theirs,) = logits_of(loaded, [probe.tokens[0].tolist()])
    if not (ours - theirs).abs().max() <= _LIMITS.get(lens.dtype, 1e-1) * theirs.abs().max():
        raise UnsupportedModelError(
            f"the weights of {lens.name!r} are not those of {lens.source} any more: expected the Hugging Face model"
        )
    return loaded


def _as_configured(hf_model: Any) -> Any:
    """The model without weights that its configuration does not have, such as the bias of 0 that a bridge adds."""
    with torch.device("meta"):
        own = set(type(hf_model)(hf_model.config).state_dict())
    for name in set(hf_model.state_dict()) - own:
        path, _, last = name.rpartition(".")
        module = hf_model.get_submodule(path)
        module._buffers.pop(last, None)
        # As torch's own layers have a bias that is not there.
        module.register_parameter(last, None)
    return hf_model


def _rows(model: Any, texts: Iterable[Any]) -> list[list[int]]:
    """Tokens of texts, or of all texts of demonstrations."""
    known = PlainModel.of(model) if is_plain(model) else Lens.of(model)
    found: list[str] = []
    for one in texts:
        found += [one.positive, one.negative] if isinstance(one, Demonstration) else [one]
    if not found or not all(isinstance(one, str) for one in found):
        raise InputError("a scale is fitted to demonstrations or texts: expected some of them")
    return [encode(known, text) for text in found]


def _exact_maps(edit: Any, where: "Where") -> dict[int, tuple[Tensor, Tensor]] | None:
    """The affine map of each layer; None where one of them is not affine."""
    maps = {}
    for layer, alpha in where.strengths.items():
        found = affine_map(edit.arithmetic(layer, where.combine), edit.shape, _number(alpha))
        if found is None:
            return None
        maps[layer] = found
    return maps


def _number(alpha: Any) -> float:
    if isinstance(alpha, Tensor):
        raise InputError("weights act alike on every token: expected a number as strength, got a tensor")
    return float(alpha)


def _scaled_maps(
    edit: Any, hf_model: Any, where: "Where", rows: list[list[int]]
) -> tuple[dict[int, tuple[Tensor, Tensor]], dict[int, float]]:
    """Affine maps with the direction of what the edit gives, each times the scale that is nearest to its lengths.

    The scale of a layer is by least squares over the activations that it meets in the edited model.

    Raises:
        UnsupportedModelError: what the edit gives has no direction that is affine in the activation.
    """
    unscaled = {layer: edit.unscaled(layer, where.combine) for layer in where.layers}
    if any(one is None for one in unscaled.values()):
        raise UnsupportedModelError(
            f"{type(edit).__name__} with combine {where.combine!r} is no affine map but for lengths, so that no "
            f"weights come near it"
        )
    sums = {layer: [0.0, 0.0] for layer in where.layers}
    plain, at = PlainModel.of(hf_model), edit.at

    def seen(layer: int, direction: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
        whole = edit.function(layer, 1.0, where.combine)

        def add(x: Tensor) -> None:
            x = x.double()
            wanted, found = at.to_units(whole(x)), direction(at.to_units(x))
            sums[layer][0] += float((wanted * found).sum())
            sums[layer][1] += float(found.square().sum())

        return add

    reading = [(edit.at.point(plain, layer), seen(layer, one)) for layer, one in unscaled.items() if one is not None]
    # Read in front of the edit, which is put in behind.
    with plain.hooks(reading), edit.put(hf_model, where):
        logits_of(hf_model, rows)
    maps, scales = {}, {}
    for layer, direction in unscaled.items():
        assert direction is not None
        scale = scales[layer] = sums[layer][0] / sums[layer][1] if sums[layer][1] else 1.0
        alpha = _number(where.strengths[layer])

        def scaled(x: Tensor, strength: Any, direction: Any = direction, scale: float = scale) -> Tensor:
            return x + strength * (scale * direction(x) - x)

        found = affine_map(scaled, edit.shape, alpha)
        if found is None:
            raise UnsupportedModelError(f"{type(edit).__name__} is no affine map but for lengths in layer {layer}")
        maps[layer] = found
    return maps, scales


def _divergence(expected: list[Tensor], found: list[Tensor]) -> float:
    """Mean KL over all tokens, in nats."""
    total = tokens = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        p, q = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
        total, tokens = total + float((p.exp() * (p - q)).sum()), tokens + len(p)
    return max(total / tokens, 0.0)
