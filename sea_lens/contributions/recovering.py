"""How few heads and MLPs suffice for an edit's effect, jointly (docs/method.md 9.6)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer, as_several
from .._support.processes import mine, summed
from .._support.progress import tracked
from ..edits.base import Edit
from ..edits.where import LayerChoice, Positions, Strength
from ..errors import InputError, UnsupportedModelError
from ..measure.effects import checked_controls
from ..measure.scorer import ScoringBatch
from ..texts.items import Contrast
from .base import FEWEST_SPLIT
from .integral import outside_inference_mode
from .nodes import Node, Nodes, Run
from .patching import METHODS, Hooks
from .recovery_results import Recovery
from .study import Study, activation_edit

DRAWS = 20
# Nodes up to which every number of them is measured.
ALL_SIZES = 40
# Relative error up to which all nodes and the edit together must give the edited run.
TOLERANCE = 1e-3


@outside_inference_mode
def recovery(
    model: Any,
    edit: Edit,
    contrasts: Iterable[Contrast],
    heads: str = "sufficiency",
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    mlps: bool = True,
    sizes: Iterable[int] | None = None,
    draws: int = DRAWS,
    control: Iterable[Edit] = (),
    batch_size: int = 16,
    prepend_bos: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> Recovery:
    """What of the effect the k strongest heads and MLPs carry together, against k (docs/method.md 9.6).

    They are ranked on every other contrast and measured on those between; with fewer than 20 contrasts on the same ones
    (`Recovery.held_out` says which).

    Args:
        model: a TransformerLens model.
        edit: an edit of activations.
        contrasts: what the effect is measured on.
        heads: how nodes are ranked, each on its own: by "sufficiency", "necessity" or "gradient", as in
            `head_contributions`.
        layers, strength, combine, positions: as in `applied`.
        mlps: whether MLPs are nodes beside heads. An MLP's value is what it gives before an edit of it: the edit itself
            is no node.
        sizes: how many nodes to take; by default every number up to 40 nodes, and from there on some of them.
        draws: how many random orders of the nodes stand beside it.
        control: edits whose own rankings of the nodes stand beside it, such as `sl.permuted` ones: where their sets
            recover as much, the nodes carry whatever is edited.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        seed: of the random orders.
        progress: show a progress bar.

    Returns:
        The effect that is kept with the k first nodes alone (faithfulness), and that is lost without them
        (completeness), for every k, with those of random sets and of the controls' sets.

    Raises:
        InputError: an unknown ranking, sizes that are not among the nodes, or an edit that is not of activations.
        UnsupportedModelError: hooks do not see what heads write, or all nodes and the edit together do not give the
            edited run; says by how much.
        Otherwise as `effect`.

    Example:
        >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
        >>> found = sl.recovery(bed.model, edit, bed.contrasts["dev"][:20], sizes=[1, 27], draws=2)
        >>> found.sizes, len(found.nodes), found.held_out
        ((1, 27), 27, True)
    """
    if heads not in METHODS:
        raise InputError(f"unknown heads {heads!r}: expected one of {', '.join(METHODS)}")
    edit, control = activation_edit(model, edit, "recovery"), checked_controls(control)
    draws, seed = as_integer(draws, "draws", least=0), as_integer(seed, "seed", least=0)
    common: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos, "progress": progress}
    study = Study.of(model, edit, contrasts, layers, strength, combine, positions, **common)
    study.check_control(control)
    nodes = Nodes.of(study, mlps=mlps)
    taken = _sizes(sizes, len(nodes.nodes))
    _check_whole(nodes)
    studies = [study, *(study.under(one) for one in control)]
    singles = [measured_nodes(nodes, one, heads) for one in studies]
    split = len(study.effects) >= FEWEST_SPLIT
    orders = [_ranked(nodes.nodes, items[::2] if split else items) for items in singles]
    rng = np.random.default_rng(seed)
    random = [[nodes.nodes[i] for i in rng.permutation(len(nodes.nodes))] for _ in range(draws)]
    sets = [tuple(order[:k]) for order in (*orders, *random) for k in taken]
    kept, lost = _joint(nodes, list(dict.fromkeys(sets)))
    shown = slice(1, None, 2) if split else slice(None)

    def curve(of: Mapping[tuple[Node, ...], Float[Tensor, " contrasts"]], order: list[Node]) -> Tensor:
        return torch.stack([of[tuple(order[:k])][shown] for k in taken], 1)

    def means(of: Mapping[tuple[Node, ...], Tensor], some: Sequence[list[Node]]) -> Tensor:
        return torch.stack([curve(of, order).mean(0) for order in some]) if some else torch.zeros(0, len(taken))

    return Recovery(
        nodes=tuple(orders[0]),
        ranked_by=heads,
        sizes=taken,
        item_effects=study.effects[shown],
        item_values=curve(kept, orders[0]),
        item_losses=curve(lost, orders[0]),
        random_values=means(kept, random).double(),
        random_losses=means(lost, random).double(),
        control_values=means(kept, orders[1:]).double(),
        control_losses=means(lost, orders[1:]).double(),
        held_out=split,
    )


def _sizes(sizes: Iterable[int] | None, n: int) -> tuple[int, ...]:
    if sizes is not None:
        given = [as_integer(size, "sizes", least=0) for size in as_several(sizes, "sizes", int)]
        if max(given) > n:
            raise InputError(f"sizes up to {max(given)}: the model has {n} nodes")
        return tuple(sorted(set(given)))
    if n <= ALL_SIZES:
        return tuple(range(n + 1))
    return tuple(sorted({0, n, *np.geomspace(1, n, ALL_SIZES // 2).round().astype(int).tolist()}))


def _ranked(nodes: Sequence[Node], items: Float[Tensor, "contrasts nodes"]) -> list[Node]:
    """Nodes by descending value: those that carry the effect, before those that carry nothing or act against it."""
    sign = 1.0 if items.sum() >= 0 else -1.0
    return [nodes[i] for i in (sign * items.mean(0)).argsort(descending=True, stable=True).tolist()]


def _check_whole(nodes: Nodes) -> None:
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
    items = torch.zeros(nodes.study.scorer.n // 2, len(nodes.nodes), dtype=torch.float64)
    hooks = nodes.edit_hooks(study)
    batches = mine(nodes.study.scorer.batches)
    singles = [(node,) for node in nodes.nodes]

    def filled() -> list[Tensor]:
        for batch in tracked(batches, method, len(batches), show=nodes.study.progress):
            edited = nodes.run(batch, hooks)
            if method == "gradient":
                items.index_add_(0, batch.items, nodes.first_order(batch, edited))
                continue
            unedited = nodes.run(batch, ())
            for start, values in _some(nodes, batch, singles, *_method(method, hooks, unedited, edited)):
                clean = unedited.values if method == "sufficiency" else edited.values
                change = (values - clean) if method == "sufficiency" else (clean - values)
                for place, row in enumerate(change, start):
                    items[:, place].index_add_(0, batch.items, row)
        return [items]

    summed(filled)
    return items


def _method(method: str, hooks: Hooks, unedited: Run, edited: Run) -> tuple[Hooks, Run]:
    """The run that is exchanged in, and the one that values come from."""
    return ((), edited) if method == "sufficiency" else (hooks, unedited)


def _some(
    nodes: Nodes, batch: ScoringBatch, sets: Sequence[Sequence[Node]], hooks: Hooks, source: Run
) -> Iterator[tuple[int, Float[Tensor, "sets batch"]]]:
    """Values with every set exchanged, as many sets in a pass as the batch size has room for."""
    at_once = max(1, nodes.study.batch_size // len(batch.tokens))
    for start in range(0, len(sets), at_once):
        yield start, nodes.exchanged(batch, sets[start : start + at_once], hooks, source)


def _joint(
    nodes: Nodes, sets: Sequence[tuple[Node, ...]]
) -> tuple[dict[tuple[Node, ...], Float[Tensor, " contrasts"]], dict[tuple[Node, ...], Float[Tensor, " contrasts"]]]:
    """Of every set what of the effect is kept with its nodes alone, and what is lost without them."""
    study = nodes.study
    # A set is the same in whatever order.
    unlike = list(dict.fromkeys(frozenset(one) for one in sets))
    hooks = nodes.edit_hooks(study)
    batches = mine(study.scorer.batches)
    kept, lost = (torch.zeros(study.scorer.n // 2, len(unlike), dtype=torch.float64) for _ in range(2))

    def filled() -> list[Tensor]:
        for batch in tracked(batches, "joint patching", len(batches), show=study.progress):
            unedited, edited = nodes.run(batch, ()), nodes.run(batch, hooks)
            listed = [tuple(one) for one in unlike]
            for start, values in _some(nodes, batch, listed, (), edited):
                for place, row in enumerate(values - unedited.values, start):
                    kept[:, place].index_add_(0, batch.items, row)
            for start, values in _some(nodes, batch, listed, hooks, unedited):
                for place, row in enumerate(edited.values - values, start):
                    lost[:, place].index_add_(0, batch.items, row)
        return [kept, lost]

    summed(filled)
    places = {one: place for place, one in enumerate(unlike)}
    found = [{one: of[:, places[frozenset(one)]] for one in sets} for of in (kept, lost)]
    return found[0], found[1]
