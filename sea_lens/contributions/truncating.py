"""How few of an edit's net directions have its effect, and make its displacement (docs/method.md 8.6)."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from .._support.arguments import as_integer, as_several
from .._support.processes import mine, summed
from ..edits.base import Edit
from ..edits.where import LayerChoice, Positions, Strength
from ..errors import InputError
from ..measure.effects import checked_controls
from ..measure.scorer import ScoringBatch
from ..models.lens import HookFunction
from ..spectral.edit import SpectralEdit
from ..texts.items import Contrast
from .direction_parts import ONE_SIDED, spectral_edit
from .study import Study, activation_edit
from .truncation_results import Truncation

# Planes up to which every number of them is tried.
ALL_SIZES = 16


def truncation(
    model: Any,
    edit: Edit,
    contrasts: Iterable[Contrast],
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    sizes: Iterable[int] | None = None,
    control: Iterable[Edit] = (),
    batch_size: int = 16,
    prepend_bos: bool = True,
) -> Truncation:
    """Effect and displacement of the edit of its k first net planes, against k (docs/method.md 8.6).

    Args:
        model: a TransformerLens model.
        edit: a linear spectral edit.
        contrasts: what the effect is measured on.
        layers, strength, combine, positions: as in `applied`; `combine` must use both sides, since planes are ordered
            by what one side has more of, which says nothing of an edit by one side alone.
        sizes: numbers of planes to try, as `edit.truncated` takes them; by default every number up to 16, and from
            there on some of them.
        control: linear spectral edits to cut and measure in the same way, such as `sl.permuted` ones.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.

    Returns:
        The effect of each shorter edit with its interval, and the share of the whole displacement that it makes.

    Raises:
        InputError: an edit, or a control, that is not spectral or acts through a feature map; `combine` of one side
            alone; sizes below 1.
        Otherwise as `effect`.

    Example:
        >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
        >>> found = sl.truncation(bed.model, edit, bed.contrasts["dev"][:20], sizes=[2, 12])
        >>> abs(found.values[-1].item() - found.effect) < 1e-5, round(found.displacements.mean(0)[-1].item(), 3)
        (True, 1.0)
    """
    edit = spectral_edit(activation_edit(model, edit, "truncation"))
    control = [spectral_edit(one) for one in checked_controls(control)]
    taken = _sizes(sizes, max(max(pair) for pair in edit.ranks.values()))
    common: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos}
    study = Study.of(model, edit, contrasts, layers, strength, combine, positions, **common)
    if study.where.combine in ONE_SIDED:
        raise InputError(
            f"combine {study.where.combine!r}: planes are ordered by what one side has more of than the other, and "
            f"this uses one side alone: expected one of {', '.join(c for c in edit.combines if c not in ONE_SIDED)}"
        )
    study.check_control(control)
    shorter = [edit.truncated(k) for k in taken]
    shorter_controls = [[one.truncated(k) for k in taken] for one in control]
    controls = [[study.under(one).effects.mean().item() for one in some] for some in shorter_controls]
    return Truncation(
        sizes=taken,
        layers=study.layers,
        item_effects=study.effects,
        item_values=torch.stack([study.under(one).effects for one in shorter], 1),
        displacements=_displacements(study, shorter),
        control_values=torch.tensor(controls, dtype=torch.float64).reshape(len(control), len(taken)),
    )


def _sizes(sizes: Iterable[int] | None, most: int) -> tuple[int, ...]:
    if sizes is not None:
        return tuple(sorted({as_integer(size, "sizes", least=1) for size in as_several(sizes, "sizes", int)}))
    if most == 0:
        raise InputError("the edit has no directions")
    if most <= ALL_SIZES:
        return tuple(range(1, most + 1))
    return tuple(sorted({most, *np.geomspace(1, most, ALL_SIZES).round().astype(int).tolist()}))


def _displacements(study: Study, shorter: Sequence[SpectralEdit]) -> Float[Tensor, "layers sizes"]:
    """Share of the displacement of each layer that each shorter edit makes, in the run under the whole edit.

    NaN of a layer that is not moved but by rounding.
    """
    whole = torch.zeros(len(study.layers), dtype=torch.float64)
    lengths = torch.zeros(len(study.layers), dtype=torch.float64)
    missed = torch.zeros(len(study.layers), len(shorter), dtype=torch.float64)
    functions = study.activation_edit("truncation").functions(study.model, study.where)
    of_shorter = [one.functions(study.model, study.under(one).where) for one in shorter]

    def watching(place: int, batch: ScoringBatch, function: HookFunction) -> HookFunction:
        counted = _counted(batch)

        def hook(x: Tensor) -> Tensor:
            out = function(x)
            assert out is not None
            moved = _chosen(out - x, counted)
            whole[place] += moved.square().sum().item()
            lengths[place] += _chosen(x, counted).square().sum().item()
            for size, one in enumerate(of_shorter):
                cut = one[place][1](x)
                assert cut is not None
                missed[place, size] += (moved - _chosen(cut - x, counted)).square().sum().item()
            return out

        return hook

    def added() -> list[Tensor]:
        for batch in mine(study.scorer.batches):
            hooks = [(name, watching(place, batch, one)) for place, (name, one) in enumerate(functions)]
            with torch.no_grad(), study.lens.hooks(hooks):
                study.scorer.batch_log_probs(batch)
        return [whole, lengths, missed]

    summed(added)
    rounding = torch.finfo(study.lens.dtype).eps ** 2 * lengths
    moved = torch.where(whole > rounding, whole, math.nan)
    return 1 - missed / rearrange(moved, "layers -> layers 1")


def _counted(batch: ScoringBatch) -> Bool[Tensor, "batch pos"]:
    """Tokens but the first of each text: BOS is the same everywhere, and often far larger than the rest."""
    counted = batch.mask.bool()
    counted[:, 0] &= batch.mask.sum(1) == 1
    return counted


def _chosen(moved: Float[Tensor, "batch pos *units"], counted: Bool[Tensor, "batch pos"]) -> Float[Tensor, "..."]:
    return moved[counted.to(moved.device)].double()
