"""How few heads and MLPs suffice for an edit's effect, jointly (docs/method.md 9.6)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer, as_several, as_truth_value
from ..edits.base import Edit
from ..edits.where import LayerChoice, Positions, Strength
from ..errors import InputError
from ..measure.effects import checked_controls
from ..texts.items import Contrast
from .base import FEWEST_SPLIT
from .integral import outside_inference_mode
from .joint_patching import KEPT, LOST, WITH_EDIT, check_whole, jointly, measured_nodes
from .nodes import Node, Nodes
from .patching import METHODS as SINGLY
from .recovery_results import Recovery
from .study import Study, activation_edit

GREEDY = "greedy"
METHODS = (*SINGLY, GREEDY)
DRAWS = 20
# Nodes that a greedy order is begun with, and the candidates that it chooses among; the others follow as they rank.
GREEDY_STEPS, CANDIDATES = 10, 16
# Nodes up to which every number of them is measured.
ALL_SIZES = 40


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
    direct: bool = False,
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
        heads: how nodes are ranked: each on its own by "sufficiency", "necessity" or "gradient", as in
            `head_contributions`; or "greedy", where each of the first 10 is the node, of the 16 that rank first by
            "sufficiency", that adds most to those before it.
        layers, strength, combine, positions: as in `applied`.
        direct: whether the edit itself belongs to the circuit as well: what it does to the logits with no node between
            is then kept from the beginning, the nodes are what passes on the rest, and all of them keep all. An edit of
            heads acts on the `z` of a node, whichever that is.
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
        InputError: an unknown ranking, sizes that are not among the nodes, `direct` or `mlps` that is no truth value,
            or an edit that is not of activations.
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
    direct, mlps = as_truth_value(direct, "direct"), as_truth_value(mlps, "mlps")
    draws, seed = as_integer(draws, "draws", least=0), as_integer(seed, "seed", least=0)
    common: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos, "progress": progress}
    study = Study.of(model, edit, contrasts, layers, strength, combine, positions, **common)
    study.check_control(control)
    # Beside the edit a head is a node without what the edit does to it, as MLPs are: held, it is edited all the same.
    nodes = Nodes.of(study, mlps=mlps, heads_unedited=direct)
    taken = _sizes(sizes, len(nodes.nodes))
    check_whole(nodes)
    kept_by = WITH_EDIT if direct else KEPT
    places = range(len(study.contrasts.prompts))
    held_out = len(places) >= FEWEST_SPLIT
    chosen_on, shown = (study.picked(places[half::2]) if held_out else study for half in (0, 1))
    studies = [chosen_on, *(chosen_on.under(one) for one in control)]
    orders = [_order(replace(nodes, study=one), heads, kept_by) for one in studies]
    rng = np.random.default_rng(seed)
    random = [[nodes.nodes[i] for i in rng.permutation(len(nodes.nodes))] for _ in range(draws)]
    sets = [frozenset(order[:k]) for order in (*orders, *random) for k in taken]
    kept, lost = (jointly(replace(nodes, study=shown), sets, way) for way in (kept_by, LOST))

    def curve(of: Mapping[frozenset[Node], Float[Tensor, " contrasts"]], order: list[Node]) -> Tensor:
        return torch.stack([of[frozenset(order[:k])] for k in taken], 1)

    def means(of: Mapping[frozenset[Node], Tensor], some: Sequence[list[Node]]) -> Tensor:
        return torch.stack([curve(of, order).mean(0) for order in some]) if some else torch.zeros(0, len(taken))

    return Recovery(
        nodes=tuple(orders[0]),
        ranked_by=heads,
        direct=direct,
        sizes=taken,
        item_effects=shown.effects,
        item_values=curve(kept, orders[0]),
        item_losses=curve(lost, orders[0]),
        random_values=means(kept, random).double(),
        random_losses=means(lost, random).double(),
        control_values=means(kept, orders[1:]).double(),
        control_losses=means(lost, orders[1:]).double(),
        held_out=held_out,
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


def _order(nodes: Nodes, heads: str, kept_by: str) -> list[Node]:
    """The nodes in the order in which they are taken."""
    singly = measured_nodes(nodes, nodes.study, KEPT if heads == GREEDY else heads)
    ranked = _ranked(nodes.nodes, singly)
    return ranked if heads != GREEDY else _greedily(nodes, ranked, kept_by)


def _ranked(nodes: Sequence[Node], items: Float[Tensor, "contrasts nodes"]) -> list[Node]:
    """Nodes by descending value: those that carry the effect, before those that carry nothing or act against it."""
    sign = 1.0 if items.sum() >= 0 else -1.0
    return [nodes[i] for i in (sign * items.mean(0)).argsort(descending=True, stable=True).tolist()]


def _greedily(nodes: Nodes, ranked: Sequence[Node], kept_by: str) -> list[Node]:
    """The order in which each of the first nodes adds most to those before it, and the others follow as they rank."""
    sign = 1.0 if nodes.study.effects.mean() >= 0 else -1.0
    found: list[Node] = []
    for _ in range(min(GREEDY_STEPS, len(ranked))):
        left = [node for node in ranked[:CANDIDATES] if node not in found]
        worth = jointly(nodes, [{*found, node} for node in left], kept_by, "greedy order")
        found.append(max(left, key=lambda node: sign * worth[frozenset({*found, node})].mean().item()))
    return [*found, *(node for node in ranked if node not in found)]
