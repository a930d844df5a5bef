"""How much of an edit's effect goes from an edited layer into a head, by which way (docs/method.md 9.7)."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer, as_number
from .._support.processes import mine, summed
from .._support.progress import tracked
from ..edits.base import Edit
from ..edits.where import LayerChoice, Positions, Strength
from ..errors import InputError, UnsupportedModelError
from ..measure.effects import checked_controls
from ..models.check import refuse_inference_tensors
from ..texts.items import Contrast
from .edge_slopes import first_order
from .edges import ALL, TOLERANCE, Edge, Edges, edges_of
from .integral import outside_inference_mode
from .mediation_results import Mediation
from .patching import check_z
from .path_patching import patched_edges
from .study import Study, activation_edit, measured_with

METHODS = ("gradient", "exact")
EXACT = 20
# Nats that the edges of a layer count for at least, where an error is compared with them.
LEAST = 1e-3


@outside_inference_mode
def mediation(
    model: Any,
    edit: Edit,
    contrasts: Iterable[Contrast],
    method: str = "gradient",
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    exact: int = EXACT,
    whole: bool = False,
    batch_size: int = 16,
    prepend_bos: bool = True,
    tolerance: float | None = None,
    control: Iterable[Edit] = (),
    progress: bool = False,
) -> Mediation:
    """How much of the effect goes from each edited layer into each head, by which way (docs/method.md 9.7).

    The displacement of one edited layer, as it is in the edited run, is let into one head's queries, keys or values of
    the unedited run, or into one MLP, or into the logits; everything between is held, and everything behind computed
    anew (path patching).

    Args:
        model: a TransformerLens model.
        edit: an edit of activations.
        contrasts: what the effect is measured on.
        method: "gradient" estimates all edges by one backward pass through the unedited run; the edges of a layer add
            up to the slope of its displacement. "exact" patches each, which takes a run for every edge.
        layers, strength, combine, positions: as in `applied`.
        exact: with "gradient", how many edges of largest estimate to patch as well: `details` has both, and their
            correlation; 0 for none.
        whole: also the edges from "all", by which a head sees the whole change of the stream in front of it: by one
            way, by queries and keys together (its pattern), or by all three, which sufficiency of the head measures.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        tolerance: the largest relative error of the identity that edges of a layer add up to its slope; by default
            0.001, and 0.1 for a model in half precision.
        control: edits to measure in the same way beside this one, such as `sl.permuted` ones.
        progress: show a progress bar.

    Returns:
        Values in nats by (layer, to_layer, to, way): `to` is a head, "mlp" or "logits".

    Raises:
        InputError: an unknown method, or an edit that is not of activations.
        UnsupportedModelError: what is read at hook points does not add up; names the layer and by how much.
        Otherwise as `effect`.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    edit, control = activation_edit(model, edit, "mediation"), checked_controls(control)
    exact = as_integer(exact, "exact", least=0)
    common: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos, "progress": progress}
    study = Study.of(model, edit, contrasts, layers, strength, combine, positions, **common)
    default = TOLERANCE if study.lens.dtype.itemsize >= 4 else 0.1
    allowed = default if tolerance is None else as_number(tolerance, "tolerance", least=0.0)
    study.check_control(control)
    check_z(study)
    refuse_inference_tensors(study.lens)

    def measure(one: Study) -> list[Mediation]:
        edges = tuple(edges_of(one, whole=whole))
        items = _estimated(one, edges, allowed) if method == "gradient" else patched_edges(one, edges)
        return [Mediation(method, items, one.effects, edges=edges)]

    (found,) = measured_with(study, control, measure)
    if method == "exact" or exact == 0:
        return found
    strongest = [edge for edge, _ in found.top(exact)]
    both = torch.stack(
        [
            torch.tensor([found.values[found.labels.index(edge)] for edge in strongest], dtype=torch.float64),
            patched_edges(study, strongest).mean(0),
        ]
    )
    correlation = torch.corrcoef(both)[0, 1].item() if len(strongest) > 1 and (both.std(1) > 0).all() else float("nan")
    told = {"estimated": both[0].tolist(), "exact": both[1].tolist(), "correlation": correlation}
    return replace(found, details={"edges": strongest, **told})


def _estimated(study: Study, edges: Sequence[Edge], allowed: float) -> Float[Tensor, "contrasts edges"]:
    """First-order estimates; refuses where those of a layer do not add up to its slope."""
    measured = Edges(study, tuple(edges))
    items = torch.zeros(study.scorer.n // 2, len(edges), dtype=torch.float64)
    batches = mine(study.scorer.batches)

    def filled() -> list[Tensor]:
        for batch in tracked(batches, "mediation", len(batches), show=study.progress):
            values, slopes = first_order(measured, batch)
            for place, sender in enumerate(measured.senders):
                if sender == ALL:
                    continue
                own = [i for i, edge in enumerate(edges) if edge[0] == sender]
                off = (values[:, own].sum(1) - slopes[:, place]).abs().max().item()
                size = values[:, own].abs().sum(1).max().item()
                if not off <= allowed * max(size, LEAST):
                    raise UnsupportedModelError(
                        f"model {study.lens.name!r}: what reads the displacement of layer {sender} adds up to another "
                        f"slope than its own (off by {off:.1e} of {size:.1e}), so shares of it would be wrong"
                    )
            items.index_add_(0, batch.items, values)
        return [items]

    summed(filled)
    return items
