"""Which singular directions carry an edit's effect (SEA.md section 7, Directions).

In the path integral, ∂f/∂αₗ = ⟨∂f/∂oₗ, editedₗ − xₗ⟩ splits over the columns of U⁺ and U⁻, the rescaling to the old
norm and the centre (`shares`), so that the shares of a layer add up to its path contribution.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer
from ..edits.base import Edit
from ..edits.where import LayerChoice, Strength
from ..errors import InputError
from ..spectral.edit import SpectralEdit
from ..spectral.subspaces import Subspaces
from ..spectral.terms import direction_terms
from ..texts.demonstrations import Contrasts
from ..texts.items import Contrast, Demonstration
from .describe import describe_directions
from .integral import Slope, outside_inference_mode
from .results import DirectionContributions
from .setup import Setup, check_control, with_control

Label: TypeAlias = tuple[Any, ...]
"""(layer, side, index), at site `z` (layer, head, side, index)."""


@outside_inference_mode
def direction_contributions(
    model: Any,
    edit: Edit,
    contrasts: Iterable[Contrast],
    layers: LayerChoice = "all",
    strength: Strength = 1.0,
    combine: str | None = None,
    *,
    demonstrations: Iterable[Demonstration] | None = None,
    describe: int = 10,
    batch_size: int = 16,
    prepend_bos: bool = True,
    tolerance: float | None = None,
    control: Sequence[Edit] = (),
) -> DirectionContributions:
    """Share of each singular direction of U⁺ and U⁻, and of the norm rescale, in the effect on contrasts.

    Args:
        model: a TransformerLens model.
        edit: a spectral edit.
        contrasts: what the effect is measured on.
        layers, strength, combine: as in `applied`.
        demonstrations: those that the edit was fitted from, or others: the described directions then name the ones
            that they fire on most.
        describe: how many of the directions that contribute most to describe (`descriptions`); 0 for none.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        tolerance: as in `layer_contributions`.
        control: spectral edits of the same ranks to measure in the same way, such as `sl.permuted` or `sl.randomised`
            ones.

    Returns:
        Values in nats, by (layer, side, index). Memory: contrasts × directions numbers.

    Raises:
        InputError: the edit is not a spectral one.
        Otherwise as `effect`.

    Warns:
        UserWarning: the shares did not close to the tolerance; names the error.
    """
    if not isinstance(edit, SpectralEdit):
        raise InputError(f"only a spectral edit has singular directions, got {type(edit).__name__}")
    contrasts = Contrasts.of(contrasts)
    describe = as_integer(describe, "describe", least=0)
    chosen = edit.choose_layers(layers)
    check_control(edit, control, chosen)
    keys = {key for layer in chosen for key in edit.unit_keys(layer)}
    ranks = {key: pair for key, pair in edit.ranks.items() if key in keys}
    for other in control:
        if not isinstance(other, SpectralEdit) or any(other.ranks[key] != pair for key, pair in ranks.items()):
            raise InputError(f"a control edit has other ranks than the edit, {ranks}")
    setup = Setup.of(model, edit, contrasts, layers, strength, combine, batch_size, prepend_bos)
    combine = combine or edit.combines[0]
    # Only a centred edit, or a feature map whose inverse does not send 0 to 0, adds a constant.
    has_centre = edit.options.get("centre", False) or not edit.feature.is_identity
    labels = [label for layer in setup.layers for label in _labels(edit, layer, has_centre)]

    def shares(slope: Slope) -> Float[Tensor, "batch directions"]:
        subspaces = edit.subspaces[slope.layer].to(slope.x.device, slope.x.dtype)
        terms = direction_terms(slope.x, subspaces, edit.feature, combine)
        keep, drop, norm, centre = (
            reduce(values, "batch pos ... -> batch ...", "sum") for values in terms.along(slope.gradient)
        )
        columns = []
        for unit, (kept, dropped) in enumerate(_ranks(subspaces)):
            columns += [keep[:, unit, :kept], drop[:, unit, :dropped], norm[:, unit, None]]
            columns += [centre[:, unit, None]] if has_centre else []
        return torch.cat(columns, 1)

    items, details = setup.path.integrate(shares, setup.effects, tolerance)
    result = DirectionContributions(
        "path", torch.cat(items, 1), setup.effects, directions=tuple(labels), details=details
    )
    if describe:
        top = [label for label, _ in result.top(len(labels)) if label[-2] in ("+", "-")][:describe]
        described = describe_directions(
            model, edit, top, contrasts, demonstrations, setup.layers, strength, combine, prepend_bos=prepend_bos
        )
        result = replace(result, descriptions=dict(zip(top, described, strict=True)))
    return with_control(
        result,
        [
            direction_contributions(
                model,
                other,
                contrasts,
                setup.layers,
                strength,
                combine,
                describe=0,
                batch_size=batch_size,
                prepend_bos=prepend_bos,
                tolerance=tolerance,
            )
            for other in control
        ],
    )


def _ranks(subspaces: Subspaces) -> list[tuple[int, int]]:
    """(k⁺, k⁻) of each unit."""
    return list(zip(subspaces.keep_rank.tolist(), subspaces.drop_rank.tolist(), strict=True))


def _labels(edit: SpectralEdit, layer: int, has_centre: bool) -> Iterator[Label]:
    """Labels of a layer's shares, in the order in which they are computed."""
    for unit, (kept, dropped) in enumerate(_ranks(edit.subspaces[layer])):
        place = edit.at.place(layer, unit)
        yield from ((*place, "+", index) for index in range(kept))
        yield from ((*place, "-", index) for index in range(dropped))
        yield (*place, "norm", 0)
        if has_centre:
            yield (*place, "centre", 0)
