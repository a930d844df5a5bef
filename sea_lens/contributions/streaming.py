"""At which layers and positions the residual stream carries an edit's effect (docs/method.md 9.9).

The stream is what everything behind a layer reads of everything before it, so that with all of it from another run the
rest of the model is in that run. Taken at one position alone it tells where the effect is on its way: at the subject of
a sentence in front of some layer, and at its last token behind it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from .._support.processes import mine, summed
from .._support.progress import tracked
from ..edits.base import Edit
from ..edits.where import LayerChoice, Positions, Strength
from ..errors import InputError, UnsupportedModelError
from ..measure.effects import checked_controls
from ..measure.scorer import ScoringBatch
from ..models.check import refuse_inference_tensors
from ..models.lens import HookFunction
from ..texts.items import Contrast
from .alignment import Places
from .integral import gradients_of, outside_inference_mode, signed
from .joint_patching import TOLERANCE
from .patching import METHODS, Hooks, by_row, repeated
from .results import PositionContributions
from .study import Study, activation_edit, measured_with


@outside_inference_mode
def stream_contributions(
    model: Any,
    edit: Edit,
    contrasts: Iterable[Contrast],
    method: str = "sufficiency",
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    batch_size: int = 16,
    prepend_bos: bool = True,
    control: Iterable[Edit] = (),
    progress: bool = False,
) -> PositionContributions:
    """What of the effect passes through the residual stream behind each layer, at each position (docs/method.md 9.9).

    Args:
        model: a TransformerLens model.
        edit: an edit of activations.
        contrasts: what the effect is measured on.
        method:
            - "sufficiency": effect on the unedited run of giving it the edited run's stream at one place;
            - "necessity": what is lost when the edited run gets that of the unedited run;
            - "gradient": first-order estimate of sufficiency, all places from one backward pass. The exact ones take a
              run for each layer and position.
        layers, strength, combine, positions: as in `applied`.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        control: edits to measure in the same way beside this one, such as `sl.permuted` ones.
        progress: show a progress bar.

    Returns:
        Values in nats by layer of the model, behind it and an edit there, and position, counted from the prompt's last
        token.

    Raises:
        InputError: an unknown method, or an edit that is not of activations.
        UnsupportedModelError: with all of the edited run's stream the unedited run is not the edited one; says by how
            much.
        Otherwise as `effect`.

    Example:
        >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
        >>> found = sl.stream_contributions(bed.model, edit, bed.contrasts["dev"][:4], "gradient")
        >>> found.layers, found.positions[-1] >= 0
        ((0, 1, 2), True)
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    edit, control = activation_edit(model, edit, "stream_contributions"), checked_controls(control)
    common: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos, "progress": progress}
    study = Study.of(model, edit, contrasts, layers, strength, combine, positions, **common)
    study.check_control(control)
    _check_whole(study)

    def measure(one: Study) -> list[PositionContributions]:
        places = Places.of(one)
        items = _measured(one, method, places)
        at = tuple(range(one.lens.n_layers))
        return [PositionContributions(method, items, one.effects, layers=at, positions=places.positions)]

    return measured_with(study, control, measure)[0]


@dataclass(frozen=True)
class _Run:
    """A run: the contrast of each row, the stream behind every layer, and the gradient to each where it is wanted."""

    values: Float[Tensor, " batch"]
    streams: list[Float[Tensor, "batch pos d_model"]]
    slopes: list[Float[Tensor, "batch pos d_model"]]


def _measured(study: Study, method: str, places: Places) -> Float[Tensor, "contrasts layers positions"]:
    n = study.lens.n_layers, len(places.positions)
    items = torch.zeros(study.scorer.n // 2, *n, dtype=torch.float64)
    batches, hooks = mine(study.scorer.batches), _edit_hooks(study)

    def filled() -> list[Tensor]:
        for batch in tracked(batches, "streams", len(batches), show=study.progress):
            unedited, edited = _run(study, batch, (), slopes=method == "gradient"), _run(study, batch, hooks)
            if method == "gradient":
                for layer, values in enumerate(_first_order(unedited, edited)):
                    items[:, layer].index_add_(0, batch.items, places.aligned(values, batch))
            else:
                ends = (edited, unedited, hooks, -1.0) if method == "necessity" else (unedited, edited, (), 1.0)
                for layer, column, row in _exchanged(study, batch, places, *ends):
                    items[:, layer, column].index_add_(0, batch.items, row)
        return [items]

    summed(filled)
    return items


def _edit_hooks(study: Study) -> Hooks:
    return study.activation_edit("stream_contributions").functions(study.model, study.where)


def _points(study: Study) -> list[str]:
    return [study.lens.point("resid_post", layer) for layer in range(study.lens.n_layers)]


def _run(study: Study, batch: ScoringBatch, hooks: Hooks, *, slopes: bool = False) -> _Run:
    seen: dict[str, Tensor] = {}
    if slopes:
        refuse_inference_tensors(study.lens)

    def save(name: str) -> HookFunction:
        def hook(x: Tensor) -> Tensor | None:
            if not slopes:
                seen[name] = x
                return None
            seen[name] = x if x.requires_grad else x.detach().requires_grad_()
            # What stands before the first of them needs no gradient, so recording begins only here.
            torch.set_grad_enabled(True)
            return seen[name]

        return hook

    names = _points(study)
    with torch.no_grad(), study.lens.hooks([*hooks, *((name, save(name)) for name in names)]):
        log_probs = study.scorer.batch_log_probs(batch)
        found = gradients_of(signed(batch, log_probs).sum(), [seen[name] for name in names]) if slopes else []
    return _Run(by_row(batch, log_probs.detach()), [seen[name].detach() for name in names], found)


def _first_order(unedited: _Run, edited: _Run) -> Iterator[Float[Tensor, "batch pos"]]:
    for slope, before, after in zip(unedited.slopes, unedited.streams, edited.streams, strict=True):
        moved = after.float() - before.float()
        yield einsum(slope.float(), moved, "batch pos d, batch pos d -> batch pos").double().cpu()


def _exchanged(
    study: Study, batch: ScoringBatch, places: Places, clean: _Run, source: _Run, hooks: Hooks, sign: float
) -> Iterator[tuple[int, int, Float[Tensor, " batch"]]]:
    """What the stream of `source` at each layer and position changes in the clean run, times a sign."""
    taken = [(column, places.at(position, batch)) for column, position in enumerate(places.positions)]
    wanted = [
        (layer, column, mask) for layer in range(study.lens.n_layers) for column, mask in taken if bool(mask.any())
    ]
    at_once = max(1, study.batch_size // len(batch.tokens))
    for start in range(0, len(wanted), at_once):
        some = wanted[start : start + at_once]
        values = _patched(study, batch, [(layer, mask) for layer, _, mask in some], source, hooks)
        for (layer, column, _), row in zip(some, sign * (values - clean.values), strict=True):
            yield layer, column, row


def _patched(
    study: Study,
    batch: ScoringBatch,
    wanted: Sequence[tuple[int, Bool[Tensor, "batch pos"]]],
    source: _Run,
    hooks: Hooks,
) -> Float[Tensor, "wanted batch"]:
    """The contrast of each row with some of a layer's stream taken from `source`, for several choices in one pass."""

    def patch(layer: int) -> HookFunction:
        def hook(x: Tensor) -> Tensor:
            copies = rearrange(x.clone(), "(copy batch) pos d -> copy batch pos d", copy=len(wanted))
            for copy, (at, mask) in enumerate(wanted):
                if at == layer:
                    chosen = mask.to(x.device)
                    copies[copy][chosen] = source.streams[layer][chosen]
            return rearrange(copies, "copy batch pos d -> (copy batch) pos d")

        return hook

    patches = [(study.lens.point("resid_post", layer), patch(layer)) for layer in sorted({at for at, _ in wanted})]
    with torch.no_grad(), study.lens.hooks([*hooks, *patches]):
        values = study.scorer.batch_log_probs(repeated(batch, len(wanted)))
    return torch.stack([by_row(batch, one) for one in rearrange(values, "(copy n) -> copy n", copy=len(wanted))])


def _check_whole(study: Study) -> None:
    """Refuse a model in which the edited run's stream behind the last edited layer does not make the edited run.

    Raises:
        UnsupportedModelError: naming by how much it does not.
    """
    batch, last = study.scorer.batches[-1], max(study.layers)
    edited = _run(study, batch, _edit_hooks(study))
    again = _patched(study, batch, [(last, batch.mask.bool())], edited, ())[0]
    off = (again - edited.values).abs().max().item()
    allowed = TOLERANCE if study.lens.dtype.itemsize >= 4 else 0.1
    if not off <= allowed * (1 + edited.values.abs().max().item()):
        raise UnsupportedModelError(
            f"model {study.lens.name!r}: with the edited run's stream behind layer {last} the unedited run is off by "
            f"{off:.1e} nats of the edited one, so what passes through it cannot be told"
        )
