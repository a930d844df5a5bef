"""Which layers, heads and MLPs act together, and which do the same (docs/method.md 7.6)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .._support.arguments import as_integer
from .._support.progress import tracked
from ..edits.base import Edit, as_edit
from ..edits.several import Several
from ..edits.where import LayerChoice, Positions, Strength
from ..errors import InputError
from ..measure.effects import checked_controls
from ..measure.scorer import contrast_values
from ..texts.items import Contrast
from .games import METHODS, Coalition, Game, Worths, sampling_errors
from .integral import outside_inference_mode
from .interaction_results import Interactions
from .joint_patching import KEPT, check_whole, jointly
from .nodes import MLP, Node, Nodes, all_nodes
from .study import Study, activation_edit, measured_with

LAYERS, EDITS = "layers", "edits"


@outside_inference_mode
def interactions(
    model: Any,
    edit: Edit,
    contrasts: Iterable[Contrast],
    of: str | int | Sequence[Node] = LAYERS,
    method: str = "shapley",
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    batch_size: int = 16,
    prepend_bos: bool = True,
    permutations: int = 64,
    seed: int = 0,
    control: Iterable[Edit] = (),
    progress: bool = False,
) -> Interactions:
    """What layers, or heads and MLPs, do alone and what each pair does beyond that (docs/method.md 7.6).

    Args:
        model: a TransformerLens model.
        edit: the edit.
        contrasts: what the effect is measured on.
        of: the players: "layers", whose edits are switched on; "edits", those that an edit is `composed` of, by their
            places; a layer of the model, all of whose heads get their edited z in the unedited run; or a list of nodes,
            (layer, head) and (layer, "mlp"), likewise.
        method: what others do meanwhile. "shapley": averaged over everything they could do; the players' values add up
            to what they do together. "only_one": none of them takes part, so that a pair that acts only together shows.
            "leave_one_out": all of them do, so that a pair of which either is enough shows.
        layers, strength, combine, positions: as in `applied`.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        permutations: for "shapley" with more than 10 players: orders drawn, each together with its reverse.
        seed: of those orders.
        control: edits to measure in the same way beside this one, such as `sl.permuted` ones.
        progress: show a progress bar.

    Returns:
        Values in nats: of each player by the method, and of each pair.

    Raises:
        InputError: an unknown method, fewer than two players, a node that the model does not have, or nodes with an
            edit that is not of activations.
        UnsupportedModelError: hooks do not see what heads write.
        Otherwise as `layer_contributions`.

    Example:
        >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
        >>> found = sl.interactions(bed.model, edit, bed.contrasts["dev"][:20])
        >>> found.players, found.pairs, found.closure_error < 1e-9
        ((0, 1, 2), ((0, 1), (0, 2), (1, 2)), True)
        >>> abs(found.joint - found.effect) < 1e-9
        True
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    control = checked_controls(control)
    drawn = {"permutations": as_integer(permutations, "permutations", least=1), "seed": as_integer(seed, "seed")}
    by_nodes = not (isinstance(of, str) and of in (LAYERS, EDITS))
    if isinstance(of, str) and of == EDITS:
        check_composed(as_edit(edit), control)
    if by_nodes:
        edit = activation_edit(model, edit, "interactions of heads and MLPs")
    common: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos, "progress": progress}
    study = Study.of(model, edit, contrasts, layers, strength, combine, positions, **common)
    study.check_control(control)
    players = _nodes(study, of) if by_nodes else _parts(study, str(of))
    if len(players) < 2:
        raise InputError(f"interactions need at least two players, got {list(players)}")
    nodes = Nodes.of(study) if by_nodes else None
    if nodes is not None:
        check_whole(nodes)

    def measure(one: Study) -> list[Interactions]:
        game = _game(one, str(of)) if nodes is None else Game(players, exchanging(nodes, one))
        return [Interactions(item_effects=one.effects, item_joint=game.joint(method), **played(game, method, drawn))]

    return measured_with(study, control, measure)[0]


def played(game: Game, method: str, drawn: Mapping[str, int]) -> dict[str, Any]:
    """What players and pairs do by a method, as `Interactions` takes it."""
    values, told = game.values(method, **drawn)
    pairs, of_pairs = game.interactions(method, **drawn)
    errors = [found for one in (told, of_pairs) if (found := sampling_errors(one)) is not None]
    return {
        "method": method,
        "item_values": torch.cat([values, pairs], 1),
        "players": game.players,
        "pairs": tuple(game.pairs),
        "details": told,
        "sampling_errors": torch.cat(errors) if errors else None,
    }


def check_composed(edit: Edit, control: Sequence[Edit]) -> None:
    """Refuse an edit that is not composed, and controls that are not composed of as many.

    Raises:
        InputError: naming what was given.
    """
    if not isinstance(edit, Several):
        raise InputError(f"players 'edits' need what sl.composed makes, got {type(edit).__name__}")
    for other in control:
        if not isinstance(other, Several) or len(other.edits) != len(edit.edits):
            got = f"{len(other.edits)} edits" if isinstance(other, Several) else type(other).__name__
            raise InputError(f"a control of {len(edit.edits)} composed edits is composed of as many, got {got}")


def _parts(study: Study, of: str) -> tuple[Any, ...]:
    """The parts of an edit that can be switched on one by one: its layers, or the edits that it is composed of."""
    if of == LAYERS:
        return study.layers
    assert isinstance(study.edit, Several)
    return tuple(range(len(study.edit.edits)))


def _game(study: Study, of: str) -> Game:
    """The parts of a study's edit as players."""
    if of == LAYERS:
        layers = Game.of(study)

        def by_layer(sets: Sequence[Coalition], what: str) -> Worths:
            found = layers.worths([frozenset((layer, None) for layer in some) for some in sets], what)
            return {frozenset(layer for layer, _ in some): value for some, value in found.items()}

        return Game(study.layers, by_layer)
    whole = study.edit
    assert isinstance(whole, Several)

    def worths(sets: Sequence[Coalition], what: str) -> Worths:
        found = {}
        for some in tracked(sets, what, len(sets), show=study.progress):
            alone = replace(study, edit=as_edit(whole.only(some)), _runs={}, _others={}) if some else None
            found[some] = contrast_values(study.unedited_log_probs if alone is None else alone.edited_log_probs)
        return found

    return Game(_parts(study, of), worths)


def _nodes(study: Study, of: Any) -> tuple[Node, ...]:
    """The nodes that a user names; raises InputError where the model has no such nodes."""
    known = all_nodes(study.lens)
    if isinstance(of, str):
        raise InputError(f"unknown players {of!r}: expected {LAYERS!r}, {EDITS!r}, a layer, or a list of nodes")
    if not isinstance(of, Iterable):
        layer = as_integer(of, "of", least=0)
        if layer >= study.lens.n_layers:
            raise InputError(f"no layer {layer}: the model has {study.lens.n_layers}")
        return tuple(node for node in known if node[0] == layer and node[1] != MLP)
    asked = [tuple(node) if isinstance(node, Sequence) and not isinstance(node, str) else node for node in of]
    unknown = [node for node in asked if node not in known]
    if unknown:
        raise InputError(f"no such nodes: {unknown}; they are (layer, head) or (layer, {MLP!r}), such as {known[0]}")
    return tuple(node for node in known if node in asked)


def exchanging(nodes: Nodes, study: Study) -> Callable[[Sequence[Coalition], str], Worths]:
    """What sets of nodes keep of the effect of a study's edit."""
    under = replace(nodes, study=study)

    def worths(sets: Sequence[Coalition], what: str) -> Worths:
        return jointly(under, sets, KEPT, what)

    return worths
