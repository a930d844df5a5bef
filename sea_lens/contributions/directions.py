"""Which directions carry an edit's effect (docs/method.md 8).

In the path integral, ∂f/∂αₗ = ⟨∂f/∂oₗ, editedₗ − xₗ⟩ splits over the columns of U⁺ and U⁻ or over the net directions of
the two, the rescaling to the old norm and the centre (`spectral.direction_terms`), so that the shares of a layer add up
to its path contribution.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
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
from ..spectral.capturing import Captured
from ..spectral.direction_terms import Direction, Label
from ..spectral.edit import SpectralEdit
from ..texts.demonstrations import Demonstrations
from ..texts.items import Contrast, Demonstration
from .describe import describe_directions
from .direction_parts import BASES, DirectionParts, chosen_basis, spectral_edit, sums_over_parts
from .integral import Slope, Split, Splitter, outside_inference_mode, path_contributions
from .results import DirectionContributions
from .study import Study, check_control_places

DESCRIBED = 10
# Directions that are compared with each other, of those that contribute most.
COMPARED = 5


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
    basis: str | None = None,
    demonstrations: Iterable[Demonstration] | None = None,
    describe: int = DESCRIBED,
    batch_size: int = 16,
    prepend_bos: bool = True,
    tolerance: float | None = None,
    control: Iterable[Edit] = (),
) -> DirectionContributions:
    """Share of each direction of an edit, of the rescaling and of the centre, in the effect on contrasts.

    The source is docs/method.md 8.

    Args:
        model: a TransformerLens model.
        edit: a spectral edit.
        contrasts: what the effect is measured on.
        layers, strength, combine, positions: as in `applied`.
        basis:
            - "net": eigenvectors of U⁺U⁺ᵀ − U⁻U⁻ᵀ (docs/method.md 8.5), the directions that a linear edit really
              changes: what both sides contain cancels. Equal and close eigenvalues are one entry together. This is the
              default where both sides of a linear edit are combined;
            - "sides": columns of U⁺ and of U⁻. Shares of the two along nearly the same direction are large, opposite,
              and mean nothing by themselves.
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
        directions numbers. Where directions are described, `details` has which two of the five largest are most alike,
        and their cos² (docs/method.md 8.5).

    Raises:
        InputError: the edit is not a spectral one; an unknown basis, or "net" for an edit through a feature map; a
            control edit has another site, other ranks, or lacks a layer; the
            edit's provenance does not say how to read demonstrations; or examples stand in front of what the model
            reads.
        Otherwise as `effect`.

    Warns:
        UserWarning: the shares did not close to the tolerance; names the error.
    """
    spectral_edit(edit)
    if basis is not None and basis not in BASES:
        raise InputError(f"unknown basis {basis!r}: expected one of {', '.join(BASES)}")
    control = checked_controls(control)
    describe = as_integer(describe, "describe", least=0)
    demonstrations = None if demonstrations is None else Demonstrations.of(demonstrations)
    common: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos}
    study = Study.of(model, edit, contrasts, layers, strength, combine, positions, **common)
    check_control_ranks(study.edit, study.layers, control)
    (result,) = path_contributions(study, {by_direction(study, basis): control}, tolerance)
    layers_of_top = sorted({Direction.of(label).layer for label in strongest(result, describe)})
    captured = None
    if demonstrations is not None and layers_of_top:
        captured = Captured.of(model, spectral_edit(edit), demonstrations, layers_of_top)
    return described(study, result, captured, describe)


def check_control_ranks(edit: Edit, layers: Sequence[int], control: Sequence[Edit]) -> None:
    """Refuse control edits whose directions are not as many as the edit's, or not of activations where the edit's are.

    Raises:
        InputError: naming the edit's ranks, or a control's feature map.
    """
    check_control_places(edit, layers, control)
    own = spectral_edit(edit)
    keys = {key for layer in layers for key in own.unit_keys(layer)}
    ranks = {key: pair for key, pair in own.ranks.items() if key in keys}
    for other in control:
        if not isinstance(other, SpectralEdit) or any(other.ranks[key] != pair for key, pair in ranks.items()):
            raise InputError(f"a control edit has other ranks than the edit, {ranks}")
        if own.feature.is_identity and not other.feature.is_identity:
            raise InputError(
                f"a control edit acts through {other.feature.name!r}: expected a linear one, as the edit is"
            )


def by_direction(study: Study, basis: str | None = None) -> Splitter:
    """The path integral by direction of a study's edit.

    Of a control edit it gives what stands in the same places of its own spectrum, with planes as large as the edit's.
    """
    given = spectral_edit(study.edit)
    basis = chosen_basis(given, study.where.combine, basis)
    own = DirectionParts(given, study.where.combine, basis)
    parts = {layer: own.parts(layer) for layer in study.layers}
    rest = {layer: _rest(own, layer) for layer in study.layers}
    labels = tuple(label for layer in study.layers for label in (*(one.label for one in parts[layer]), *rest[layer]))
    known = {one.label: one for of_layer in parts.values() for one in of_layer} if basis == "net" else {}

    def split(one: Study) -> Split:
        taken = own if one is study else DirectionParts(spectral_edit(one.edit), one.where.combine, basis)

        def shares(slope: Slope) -> Float[Tensor, "batch directions"]:
            terms = taken.terms(slope.x, slope.layer)
            along = terms.along(slope.gradient)
            norm, centre = (reduce(values, "batch pos units -> batch units", "sum") for values in along[2:])
            of_parts = sums_over_parts(along[:2], parts[slope.layer])
            return torch.cat([of_parts, norm, centre] if own.has_centre else [of_parts, norm], 1)

        def result(items: list[Tensor], details: dict[str, Any]) -> DirectionContributions:
            return DirectionContributions(
                "path",
                torch.cat(items, 1),
                one.effects,
                directions=labels,
                basis=basis,
                eigenvalues={label: part.eigenvalue for label, part in known.items() if part.eigenvalue is not None},
                dimensions={label: part.n for label, part in known.items()},
                details=details,
            )

        return Split(shares, result)

    return split


def _rest(parts: DirectionParts, layer: int) -> list[Label]:
    """Labels of what is no direction: the norm of each unit, and the centre."""
    places = [parts.edit.at.place(layer, unit) for unit in range(parts.edit.shape[0])]
    names = ("norm", "centre") if parts.has_centre else ("norm",)
    return [(*place, name, 0) for name in names for place in places]


def strongest(result: DirectionContributions, n: int) -> list[Label]:
    """The n directions that contribute most."""
    return [label for label, _ in result.top(len(result.labels)) if Direction.of(label).side in ("+", "-")][:n]


def described(
    study: Study, result: DirectionContributions, captured: Captured | None, n: int = DESCRIBED
) -> DirectionContributions:
    """The result with descriptions of the n directions that contribute most."""
    top = strongest(result, n)
    if not top:
        return result
    parts = DirectionParts(spectral_edit(study.edit), study.where.combine, result.basis)
    details = {**result.details, **parts.most_alike(strongest(result, COMPARED))}
    descriptions = dict(zip(top, describe_directions(study, parts, top, captured), strict=True))
    return replace(result, descriptions=descriptions, details=details)
