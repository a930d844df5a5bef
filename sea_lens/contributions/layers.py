"""Which layers, and which positions in them, carry an edit's effect (docs/method.md 7).

Let f(α) be the mean contrast with strength αₗ on layer l's edit, s the strengths asked for, and Δ = f(s) − f(0). The
methods are those of `games` (only one, leave one out, Shapley) and of `integral` (the integrated gradient).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer
from ..edits.base import Edit
from ..edits.where import LayerChoice, Positions, Strength
from ..errors import InputError
from ..measure.effects import checked_controls
from ..texts.items import Contrast
from .alignment import Places
from .games import METHODS as GAME_METHODS
from .games import Game, sampling_errors
from .integral import Slope, Split, displaced, outside_inference_mode, path_contributions
from .results import LayerContributions, PositionContributions
from .study import Study, activation_edit, measured_with

METHODS = ("path", *GAME_METHODS)


@outside_inference_mode
def layer_contributions(
    model: Any,
    edit: Edit,
    contrasts: Iterable[Contrast],
    method: str = "path",
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    batch_size: int = 16,
    prepend_bos: bool = True,
    tolerance: float | None = None,
    permutations: int = 64,
    seed: int = 0,
    control: Iterable[Edit] = (),
    progress: bool = False,
) -> LayerContributions:
    """Contribution of each edited layer to the effect on contrasts (docs/method.md 7).

    Args:
        model: a TransformerLens model.
        edit: the edit.
        contrasts: what the effect is measured on.
        method: "path" (sums to the effect up to quadrature), "shapley" (sums to it exactly), "leave_one_out" or
            "only_one" (need not sum to it).
        layers, strength, combine, positions: as in `applied`.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        tolerance: `path` doubles its nodes from 4, at most to 64, until |Σ − Δ| ≤ tolerance · (|Δ| + 0.1 nats) on
            average, and ten times that in the root mean square over contrasts; by default 0.001, and 0.1 for a model in
            half precision, whose rounding allows no more.
        permutations: for `shapley` with more than 10 layers: orders drawn, each together with its reverse.
        seed: of those orders.
        control: edits to measure in the same way beside this one, such as `sl.permuted` or `sl.randomised` ones.
        progress: show a progress bar; "path" has none.

    Returns:
        Values in nats, one for each edited layer, with those of every contrast (`item_values`).

    Raises:
        InputError: an unknown method; "path" with an edit that is not of activations, or with examples in front of what
            the model reads; another method, over several layers, with an edit that acts on all of them or not at all;
            or a control edit of another site or without one of the layers.
        Otherwise as `effect`.

    Warns:
        UserWarning: `path` did not close to the tolerance; names the error.

    Example:
        >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
        >>> found = sl.layer_contributions(bed.model, edit, bed.contrasts["dev"][:20], layers="last-2")
        >>> found.layers, found.closure_error < 0.001 * abs(found.effect)
        ((1, 2), True)
        >>> list(found.to_frame().columns)
        ['layer', 'value', 'standard_error', 'low', 'high', 'value_chosen_by', 'value_held_out']
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    if method == "path":
        activation_edit(model, edit, f"method 'path' (the others are {', '.join(GAME_METHODS)})")
    permutations, seed = as_integer(permutations, "permutations", least=1), as_integer(seed, "seed")
    control = checked_controls(control)
    common: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos, "progress": progress}
    study = Study.of(model, edit, contrasts, layers, strength, combine, positions, **common)
    if method == "path":
        return path_contributions(study, {by_layer: control}, tolerance)[0]
    return layer_games(study, method, permutations=permutations, seed=seed, control=control)


def layer_games(
    study: Study, method: str, *, permutations: int = 64, seed: int = 0, control: Sequence[Edit] = ()
) -> LayerContributions:
    """`layer_contributions` by one of the games' methods."""

    def measure(one: Study) -> list[LayerContributions]:
        values, details = Game.of(one).values(method, permutations=permutations, seed=seed)
        errors = sampling_errors(details)
        return [
            LayerContributions(method, values, one.effects, layers=one.layers, details=details, sampling_errors=errors)
        ]

    return measured_with(study, control, measure)[0]


def by_layer(study: Study) -> Split:
    """The path integral by layer."""
    return Split(
        lambda slope: reduce(displaced(study, slope), "batch pos units d -> batch", "sum"),
        lambda items, details: LayerContributions(
            "path", torch.stack(items, 1), study.effects, layers=study.layers, details=details
        ),
    )


@outside_inference_mode
def position_contributions(
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
    tolerance: float | None = None,
    control: Iterable[Edit] = (),
) -> PositionContributions:
    """Path contribution of each edited layer at each position: where the edit does its work (docs/method.md 7.5).

    Arguments, errors and warnings as in `layer_contributions`; summed over positions, the values are those of its
    "path".

    Returns:
        Values in nats by layer and position, counted from the prompt's last token.
    """
    activation_edit(model, edit, "position_contributions")
    control = checked_controls(control)
    common: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos}
    study = Study.of(model, edit, contrasts, layers, strength, combine, positions, **common)
    return path_contributions(study, {by_position: control}, tolerance)[0]


def by_position(study: Study) -> Split:
    """The path integral by layer and position."""
    places = Places.of(study)

    def shares(slope: Slope) -> Float[Tensor, "batch positions"]:
        values = reduce(displaced(study, slope), "batch pos units d -> batch pos", "sum").cpu()
        return places.aligned(values, slope.batch)

    def result(items: list[Tensor], details: dict[str, Any]) -> PositionContributions:
        values = torch.stack(items, 1)
        return PositionContributions(
            "path", values, study.effects, layers=study.layers, positions=places.positions, details=details
        )

    return Split(shares, result)
