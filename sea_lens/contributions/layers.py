"""Which layers, and which positions in them, carry an edit's effect (SEA.md section 7, Layers).

Let f(α) be the mean contrast with strength αₗ on layer l's edit, s the strengths asked for, and Δ = f(s) − f(0). The
methods are those of `games` (only one, leave one out, Shapley) and of `path` (the integrated gradient).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from .._support.arguments import as_integer
from ..edits.base import Edit
from ..edits.where import LayerChoice, Strength
from ..errors import InputError
from ..models.tokens import encode
from ..texts.demonstrations import Contrasts
from ..texts.items import Contrast
from .games import METHODS as GAME_METHODS
from .integral import Slope, displaced, outside_inference_mode
from .results import LayerContributions, PositionContributions
from .setup import Setup, activation_edit, check_control, with_control

METHODS = ("path", *GAME_METHODS)


@outside_inference_mode
def layer_contributions(
    model: Any,
    edit: Edit,
    contrasts: Iterable[Contrast],
    method: str = "path",
    layers: LayerChoice = "all",
    strength: Strength = 1.0,
    combine: str | None = None,
    *,
    batch_size: int = 16,
    prepend_bos: bool = True,
    tolerance: float | None = None,
    permutations: int = 64,
    seed: int = 0,
    control: Sequence[Edit] = (),
    progress: bool = False,
) -> LayerContributions:
    """Contribution of each edited layer to the effect on contrasts.

    Args:
        model: a TransformerLens model.
        edit: the edit.
        contrasts: what the effect is measured on.
        method: "path" (sums to the effect up to quadrature), "shapley" (sums to it exactly), "leave_one_out" or
            "only_one" (need not sum to it).
        layers, strength, combine: as in `applied`.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        tolerance: `path` doubles its nodes from 4 until |Σ − Δ| ≤ tolerance · |Δ|, at most to 64; by default 0.001, and
            0.1 for a model in half precision, whose rounding allows no more.
        permutations: for `shapley` with more than 10 layers: orders drawn, each together with its reverse.
        seed: of those orders.
        control: edits to measure in the same way beside this one, such as `sl.permuted` or `sl.randomised` ones.
        progress: show a progress bar.

    Returns:
        Values in nats, with each contrast's share.

    Raises:
        InputError: an unknown method, or "path" with an edit that is not of activations.
        Otherwise as `effect`.

    Warns:
        UserWarning: `path` did not close to the tolerance; names the error.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    if method == "path":
        activation_edit(model, edit, f"method 'path' (the others are {', '.join(GAME_METHODS)})")
    contrasts = Contrasts.of(contrasts)
    permutations, seed = as_integer(permutations, "permutations", least=1), as_integer(seed, "seed")
    check_control(edit, control, edit.choose_layers(layers))
    setup = Setup.of(model, edit, contrasts, layers, strength, combine, batch_size, prepend_bos)
    if method == "path":
        path = setup.path
        items, details = path.integrate(
            lambda slope: reduce(displaced(path.edit, slope, combine), "batch pos units d -> batch", "sum"),
            setup.effects,
            tolerance,
        )
        values = torch.stack(items, 1)
    else:
        values, details = setup.game.values(method, permutations=permutations, seed=seed, progress=progress)
    result = LayerContributions(method, values, setup.effects, layers=setup.layers, details=details)
    return with_control(
        result,
        [
            layer_contributions(
                model,
                other,
                contrasts,
                method,
                setup.layers,
                strength,
                combine,
                batch_size=batch_size,
                prepend_bos=prepend_bos,
                tolerance=tolerance,
                permutations=permutations,
                seed=seed,
            )
            for other in control
        ],
    )


@outside_inference_mode
def position_contributions(
    model: Any,
    edit: Edit,
    contrasts: Iterable[Contrast],
    layers: LayerChoice = "all",
    strength: Strength = 1.0,
    combine: str | None = None,
    *,
    batch_size: int = 16,
    prepend_bos: bool = True,
    tolerance: float | None = None,
) -> PositionContributions:
    """Path contribution of each edited layer at each position: where in the text the edit does its work.

    Arguments, errors and warnings as in `layer_contributions`; summed over positions, the values are those of its
    "path".

    Returns:
        Values in nats by layer and position, counted from the prompt's last token.
    """
    contrasts = Contrasts.of(contrasts)
    edit = activation_edit(model, edit, "position_contributions")
    setup = Setup.of(model, edit, contrasts, layers, strength, combine, batch_size, prepend_bos)
    lens = setup.scorer.lens
    lengths = torch.tensor([len(encode(lens, contrast.prompt, prepend_bos=prepend_bos)) for contrast in contrasts])
    # Column 0 is the first token of the longest prompt; the last token of every prompt is in one column.
    origin = int(lengths.max()) - 1
    longest = max(int((batch.mask.sum(1) - lengths[batch.items]).max()) for batch in setup.scorer.batches)
    width = origin + 1 + max(0, longest)

    def shares(slope: Slope) -> Float[Tensor, "batch positions"]:
        values = reduce(displaced(edit, slope, combine), "batch pos units d -> batch pos", "sum").cpu()
        return _aligned(values, origin + 1 - lengths[slope.batch.items], slope.batch.mask, width)

    items, details = setup.path.integrate(shares, setup.effects, tolerance)
    return PositionContributions(
        "path",
        torch.stack(items, 1),
        setup.effects,
        layers=setup.layers,
        positions=tuple(range(-origin, width - origin)),
        details=details,
    )


def _aligned(
    values: Float[Tensor, "batch pos"], offsets: Int[Tensor, " batch"], mask: Int[Tensor, "batch pos"], width: int
) -> Float[Tensor, "batch positions"]:
    """Each row moved to the right by its offset; padding, where all gradients are zero, is left out."""
    aligned = torch.zeros(len(values), width, dtype=values.dtype)
    rows, positions = mask.bool().nonzero(as_tuple=True)
    aligned[rows, positions + offsets[rows]] = values[rows, positions]
    return aligned
