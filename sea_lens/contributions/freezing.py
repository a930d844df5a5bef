"""What of an edit's effect passes through attention patterns, values, MLPs or the final norm (docs/method.md 9.8)."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.processes import mine, summed
from .._support.progress import tracked
from ..edits.base import Edit
from ..edits.where import LayerChoice, Positions, Strength
from ..measure.effects import checked_controls
from ..measure.scorer import ScoringBatch
from ..models.lens import FINAL_NORM, HookFunction, Lens
from ..texts.items import Contrast
from .frozen_results import FREEZES, Frozen
from .integral import outside_inference_mode
from .patching import by_row, check_z
from .study import Study, activation_edit, measured_with

_HELD = {
    "patterns": ("q", "k"),
    "values": ("v",),
    "attention": ("z",),
    "mlps": ("mlp_out",),
    "attention_and_mlps": ("z", "mlp_out"),
}


@outside_inference_mode
def frozen(
    model: Any,
    edit: Edit,
    contrasts: Iterable[Contrast],
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    batch_size: int = 16,
    prepend_bos: bool = True,
    control: Iterable[Edit] = (),
    progress: bool = False,
) -> Frozen:
    """What of the effect is lost with a part of the whole model held at its unedited values (docs/method.md 9.8).

    Args:
        model: a TransformerLens model.
        edit: an edit of activations.
        contrasts: what the effect is measured on.
        layers, strength, combine, positions: as in `applied`.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        control: edits to measure in the same way beside this one, such as `sl.permuted` ones.
        progress: show a progress bar.

    Returns:
        Values in nats for attention patterns, values, attention, MLPs, attention and MLPs, and the scales of the norms
        inside blocks and of the final norm. MLPs are left out in a model without any, and norms in one without them.

    Raises:
        InputError: an edit that is not of activations.
        UnsupportedModelError: hooks do not see what heads write.
        Otherwise as `effect`.

    Example:
        >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
        >>> found = sl.frozen(bed.model, edit, bed.contrasts["dev"][:20])
        >>> found.held
        ('patterns', 'values', 'attention', 'mlps', 'attention_and_mlps', 'block_norms', 'final_norm')
    """
    edit, control = activation_edit(model, edit, "frozen"), checked_controls(control)
    common: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos, "progress": progress}
    study = Study.of(model, edit, contrasts, layers, strength, combine, positions, **common)
    study.check_control(control)
    check_z(study)
    held = _parts(study.lens)
    return measured_with(
        study, control, lambda one: [Frozen("frozen", _lost(one, held), one.effects, held=tuple(held))]
    )[0]


def _parts(lens: Lens) -> dict[str, list[str]]:
    """The hook points that are held, by what holding them is called."""
    found = {}
    for name in FREEZES:
        if name == "final_norm":
            point = lens.norm_scale(FINAL_NORM)
            points = [point] if lens.has_final_norm and point in lens.points else []
        elif name == "block_norms":
            points = [point for layer in range(lens.n_layers) for point in lens.block_norm_scales(layer)]
        else:
            layers = range(lens.n_layers)
            points = [lens.point(kind, at) for kind in _HELD[name] for at in layers if lens.has_site(kind, at)]
        if points and (name != "attention_and_mlps" or "mlps" in found):
            found[name] = points
    return found


def _lost(study: Study, held: dict[str, list[str]]) -> Float[Tensor, "contrasts held"]:
    items = torch.zeros(study.scorer.n // 2, len(held), dtype=torch.float64)
    hooks = study.activation_edit("frozen").functions(study.model, study.where)
    batches = mine(study.scorer.batches)
    wanted = sorted({point for points in held.values() for point in points})

    def run(batch: ScoringBatch, hooks: list[tuple[str, HookFunction]]) -> Float[Tensor, " batch"]:
        # A HookedTransformer calls the norm in front of attention once for each of queries, keys and values.
        norms = [pair for pair in hooks if pair[0].endswith("hook_scale")]
        others = [pair for pair in hooks if not pair[0].endswith("hook_scale")]
        held = study.lens.hooks(norms, proven=False)
        with torch.no_grad(), warnings.catch_warnings(), study.lens.hooks(others), held:
            # That a norm is put together again from its hooked scale, in place of Hugging Face's own, is meant.
            warnings.filterwarnings("ignore", message="A forward hook edited hook_scale")
            return by_row(batch, study.scorer.batch_log_probs(batch))

    def filled() -> list[Tensor]:
        for batch in tracked(batches, "frozen", len(batches), show=study.progress):
            seen: dict[str, Tensor] = {}

            def save(point: str, seen: dict[str, Tensor] = seen) -> HookFunction:
                return lambda x: seen.update({point: x})

            def put(point: str, seen: dict[str, Tensor] = seen) -> HookFunction:
                return lambda _: seen[point]

            run(batch, [(point, save(point)) for point in wanted])
            edited = run(batch, hooks)
            for place, points in enumerate(held.values()):
                # An edit of what is held acts on the held value.
                left = run(batch, [*((point, put(point)) for point in points), *hooks])
                items[:, place].index_add_(0, batch.items, edited - left)
        return [items]

    summed(filled)
    return items
