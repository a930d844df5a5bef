"""Which singular directions carry an edit's effect (docs/method.md 8).

In the path integral, ∂f/∂αₗ = ⟨∂f/∂oₗ, editedₗ − xₗ⟩ splits over the columns of U⁺ and U⁻, the rescaling to the old
norm and the centre (`spectral.direction_terms`), so that the shares of a layer add up to its path contribution.
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
from ..edits.where import LayerChoice, Positions, Strength
from ..errors import InputError
from ..measure.effects import checked_controls
from ..spectral.capturing import Captured
from ..spectral.direction_terms import Direction, direction_terms
from ..spectral.edit import SpectralEdit
from ..spectral.subspaces import Subspaces
from ..texts.demonstrations import Demonstrations
from ..texts.items import Contrast, Demonstration
from .describe import describe_directions
from .integral import Slope, Split, outside_inference_mode, path_contributions
from .results import DirectionContributions
from .study import Study

Label: TypeAlias = tuple[Any, ...]
"""(layer, side, index), at site `z` (layer, head, side, index)."""

DESCRIBED = 10


@outside_inference_mode
def direction_contributions(
    model: Any,
    edit: Edit,
    contrasts: Iterable[Contrast],
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    demonstrations: Iterable[Demonstration] | None = None,
    describe: int = DESCRIBED,
    batch_size: int = 16,
    prepend_bos: bool = True,
    tolerance: float | None = None,
    control: Iterable[Edit] = (),
) -> DirectionContributions:
    """Share of each singular direction of U⁺ and U⁻, of the rescaling and of the centre, in the effect on contrasts.

    The source is docs/method.md 8.

    Args:
        model: a TransformerLens model.
        edit: a spectral edit.
        contrasts: what the effect is measured on.
        layers, strength, combine, positions: as in `applied`.
        demonstrations: those that the edit was fitted from, or others: the described directions then name the ones
            that they fire on most.
        describe: how many of the directions that contribute most to describe (`descriptions`); 0 for none.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        tolerance: as in `layer_contributions`.
        control: spectral edits of the same ranks to measure in the same way, such as `sl.permuted` or `sl.randomised`
            ones.

    Returns:
        Values in nats, by (layer, side, index), at site `z` by (layer, head, side, index). Memory: contrasts ×
        directions numbers.

    Raises:
        InputError: the edit is not a spectral one; a control edit has another site, other ranks, or lacks a layer; the
            edit's provenance does not say how to read demonstrations; or examples stand in front of what the model
            reads.
        Otherwise as `effect`.

    Warns:
        UserWarning: the shares did not close to the tolerance; names the error.
    """
    spectral_edit(edit)
    control = checked_controls(control)
    describe = as_integer(describe, "describe", least=0)
    demonstrations = None if demonstrations is None else Demonstrations.of(demonstrations)
    common: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos}
    study = Study.of(model, edit, contrasts, layers, strength, combine, positions, **common)
    check_control_ranks(study, control)
    (result,) = path_contributions(study, {by_direction: control}, tolerance)
    layers_of_top = sorted({Direction.of(label).layer for label in strongest(result, describe)})
    captured = None
    if demonstrations is not None and layers_of_top:
        captured = Captured.of(model, spectral_edit(edit), demonstrations, layers_of_top)
    return described(study, result, captured, describe)


def spectral_edit(edit: Edit) -> SpectralEdit:
    """The edit, which must be a spectral one.

    Raises:
        InputError: it is not.
    """
    if not isinstance(edit, SpectralEdit):
        raise InputError(f"only a spectral edit has singular directions, got {type(edit).__name__}")
    return edit


def check_control_ranks(study: Study, control: Sequence[Edit]) -> None:
    """Refuse control edits whose directions are not as many as the edit's.

    Raises:
        InputError: naming the edit's ranks.
    """
    study.check_control(control)
    edit = spectral_edit(study.edit)
    keys = {key for layer in study.layers for key in edit.unit_keys(layer)}
    ranks = {key: pair for key, pair in edit.ranks.items() if key in keys}
    for other in control:
        if not isinstance(other, SpectralEdit) or any(other.ranks[key] != pair for key, pair in ranks.items()):
            raise InputError(f"a control edit has other ranks than the edit, {ranks}")


def by_direction(study: Study) -> Split:
    """The path integral by direction."""
    edit = spectral_edit(study.edit)
    # Uncentred, the identity adds no constant; φ⁻¹(0) of another feature map need not be 0.
    has_centre = edit.options.get("centre", False) or not edit.feature.is_identity
    labels = tuple(label for layer in study.layers for label in _labels(edit, layer, has_centre))

    def shares(slope: Slope) -> Float[Tensor, "batch directions"]:
        subspaces = edit.subspaces[slope.layer].to(slope.x.device, slope.x.dtype)
        terms = direction_terms(slope.x, subspaces, edit.feature, study.where.combine)
        keep, drop, norm, centre = (
            reduce(values, "batch pos ... -> batch ...", "sum") for values in terms.along(slope.gradient)
        )
        columns = []
        for unit, (kept, dropped) in enumerate(_ranks(subspaces)):
            columns += [keep[:, unit, :kept], drop[:, unit, :dropped], norm[:, unit, None]]
            columns += [centre[:, unit, None]] if has_centre else []
        return torch.cat(columns, 1)

    def result(items: list[Tensor], details: dict[str, Any]) -> DirectionContributions:
        return DirectionContributions("path", torch.cat(items, 1), study.effects, directions=labels, details=details)

    return Split(shares, result)


def strongest(result: DirectionContributions, n: int) -> list[Label]:
    """The n columns of U⁺ and U⁻ that contribute most."""
    return [label for label, _ in result.top(len(result.labels)) if Direction.of(label).side in ("+", "-")][:n]


def described(
    study: Study, result: DirectionContributions, captured: Captured | None, n: int = DESCRIBED
) -> DirectionContributions:
    """The result with descriptions of the n directions that contribute most."""
    top = strongest(result, n)
    if not top:
        return result
    return replace(result, descriptions=dict(zip(top, describe_directions(study, top, captured), strict=True)))


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
