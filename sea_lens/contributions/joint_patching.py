"""What sets of heads and MLPs keep of an effect with their edited values, and what is lost without them.

Clean runs are made once for a batch of contrasts, and every set is measured in it (docs/method.md 9.6).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.processes import mine, summed
from .._support.progress import tracked
from ..errors import UnsupportedModelError
from ..measure.scorer import ScoringBatch
from .nodes import Node, Nodes, Run
from .patching import Hooks
from .study import Study

# Relative error up to which all nodes and the edit together must give the edited run.
TOLERANCE = 1e-3
KEPT, LOST = "sufficiency", "necessity"
# Kept beside the edit itself: the edited run with everything but the nodes held as it was.
WITH_EDIT = "with_edit"


def check_whole(nodes: Nodes) -> None:
    """Refuse a model in which a run with every node of the edited run, and the edit, is not the edited run.

    Raises:
        UnsupportedModelError: naming by how much it is not.
    """
    batch, hooks = nodes.study.scorer.batches[-1], nodes.edit_hooks(nodes.study)
    edited = nodes.run(batch, hooks)
    again = nodes.exchanged(batch, [nodes.nodes], hooks, edited)[0]
    off = (again - edited.values).abs().max().item()
    allowed = TOLERANCE if nodes.study.lens.dtype.itemsize >= 4 else 0.1
    if not off <= allowed * (1 + edited.values.abs().max().item()):
        raise UnsupportedModelError(
            f"model {nodes.study.lens.name!r}: with its own heads' z and MLP outputs put in again, the edited run is "
            f"off by {off:.1e} nats, so exchanging them would show something else"
        )


def measured_nodes(nodes: Nodes, study: Study, method: str) -> Float[Tensor, "contrasts nodes"]:
    """What every node does by itself under an edit, by one of the methods of heads."""
    under = replace(nodes, study=study)
    if method != "gradient":
        return torch.stack(list(jointly(under, [{node} for node in nodes.nodes], method, method).values()), 1)
    items = torch.zeros(study.scorer.n // 2, len(nodes.nodes), dtype=torch.float64)
    hooks, batches = nodes.edit_hooks(study), mine(study.scorer.batches)

    def filled() -> list[Tensor]:
        for batch in tracked(batches, method, len(batches), show=nodes.study.progress):
            items.index_add_(0, batch.items, under.first_order(batch, under.run(batch, hooks)))
        return [items]

    summed(filled)
    return items


def jointly(
    nodes: Nodes, sets: Iterable[Iterable[Node]], way: str, what: str = "joint patching"
) -> dict[frozenset[Node], Float[Tensor, " contrasts"]]:
    """What of the effect each set keeps with its edited values alone (`KEPT`), or with the edit as well (`WITH_EDIT`).

    Or what is lost without its edited values (`LOST`).
    """
    study = nodes.study
    unlike = list(dict.fromkeys(frozenset(one) for one in sets))
    hooks = nodes.edit_hooks(study)
    batches = mine(study.scorer.batches)
    items = torch.zeros(study.scorer.n // 2, len(unlike), dtype=torch.float64)

    def filled() -> list[Tensor]:
        for batch in tracked(batches, what, len(batches), show=study.progress):
            unedited, edited = nodes.run(batch, ()), nodes.run(batch, hooks)
            clean, sign = (edited.values, -1.0) if way == LOST else (unedited.values, 1.0)
            everybody = frozenset(nodes.nodes)
            listed = [tuple(everybody - one if way == WITH_EDIT else one) for one in unlike]
            for start, values in _some(nodes, batch, listed, *_ends(way, hooks, unedited, edited)):
                for place, row in enumerate(sign * (values - clean), start):
                    items[:, place].index_add_(0, batch.items, row)
        return [items]

    summed(filled)
    return {one: items[:, place] for place, one in enumerate(unlike)}


def _ends(way: str, hooks: Hooks, unedited: Run, edited: Run) -> tuple[Hooks, Run]:
    """The hooks of the run that values are put into, and the run that they come from."""
    return ((), edited) if way == KEPT else (hooks, unedited)


def _some(
    nodes: Nodes, batch: ScoringBatch, sets: Sequence[Sequence[Node]], hooks: Hooks, source: Run
) -> Iterator[tuple[int, Float[Tensor, "sets batch"]]]:
    """Values with every set exchanged, as many sets in a pass as the batch size has room for."""
    at_once = max(1, nodes.study.batch_size // len(batch.tokens))
    for start in range(0, len(sets), at_once):
        yield start, nodes.exchanged(batch, sets[start : start + at_once], hooks, source)
