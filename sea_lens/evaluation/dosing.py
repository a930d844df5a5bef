"""What an edit does at every strength, and the strength that costs so much (docs/method.md 6.15)."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsFloat

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_number, as_several
from .._support.progress import tracked
from ..contributions.resampled_fits import Analysis, contributions_analysis
from ..edits.base import Edit, as_edit
from ..edits.where import LayerChoice, Positions
from ..errors import InputError
from ..measure.effects import Effect, checked_controls, control_places, effect_from
from ..measure.scorer import contrast_scorer
from ..texts.demonstrations import Contrasts
from ..texts.items import Contrast
from .dose_results import Dose, Side
from .perplexity import Perplexity
from .run import Task, evaluate

STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
MOST = 64.0
Texts = str | os.PathLike[str] | Iterable[str]


def dose(
    model: Any,
    edit: Edit,
    contrasts: Iterable[Contrast],
    strengths: Iterable[SupportsFloat] = STRENGTHS,
    texts: Texts | None = None,
    contributions: str | Analysis | None = None,
    *,
    layers: LayerChoice | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    control: Iterable[Edit] = (),
    batch_size: int = 16,
    prepend_bos: bool = True,
    progress: bool = False,
    **options: Any,
) -> Dose:
    """The effect of an edit against its strength, and against what it costs (docs/method.md 6.15).

    Args:
        model: a TransformerLens model.
        edit: an edit of any method.
        contrasts: what the effect is measured on.
        strengths: which to try.
        texts: what side effects are measured on, as divergence from the unedited model and change of the loss: a list
            of texts, or a file as `evaluate` reads for "perplexity"; none by default.
        contributions: "layers", "positions", "heads", or a function of contributions such as `sl.head_contributions`:
            measured at every strength as well.
        layers, combine, positions: as in `applied`.
        control: edits to measure at the same strengths, such as `sl.permuted` ones.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        progress: show a progress bar.
        options: more for the function of contributions, such as its `method`.

    Returns:
        Effects with intervals, the share of contrasts that get worse, side effects, and contributions, by strength.

    Raises:
        InputError: no strengths, or one that is not finite; an unknown analysis.
        FileError: texts that cannot be read, or are all empty.
        Otherwise as `effect`, `evaluate` and the function of contributions.

    Example:
        >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
        >>> found = sl.dose(bed.model, edit, bed.contrasts["dev"][:20], [0.5, 1.0], bed.documents[:5])
        >>> list(found.to_frame().columns)
        ['strength', 'effect', 'low', 'high', 'worse', 'mass', 'kl', 'loss_change']
    """
    edit, control = as_edit(edit), checked_controls(control)
    tried = [as_number(one, "strengths") for one in as_several(strengths, "strengths", (int, float))]
    analysis = contributions_analysis(contributions, options)
    where: dict[str, Any] = {"layers": layers, "combine": combine, "positions": positions}
    acting = [edit.check(model, layers, strength, combine, positions, scoring=True) for strength in tried]
    contrasts = Contrasts.of(contrasts)
    side = None if texts is None else SideEffects(model, texts, batch_size=batch_size, prepend_bos=prepend_bos)
    scorer = contrast_scorer(model, contrasts, batch_size=batch_size, prepend_bos=prepend_bos)
    unedited = scorer.log_probs()

    def measured(one: Edit, given: dict[str, Any]) -> tuple[Effect, Side | None]:
        found = effect_from(scorer, unedited, model, one, **given)
        return found, None if side is None else side.of(one, **given)

    effects, sides, parts = [], [], []
    beside: list[list[tuple[Effect, Side | None]]] = [[] for _ in control]
    for strength, place in tracked(zip(tried, acting, strict=True), "strengths", len(tried), show=progress):
        found, cost = measured(edit, {**where, "strength": strength})
        effects.append(found)
        sides.append(cost)
        for rows, one in zip(beside, control, strict=True):
            rows.append(measured(one, control_places(one, place, combine)))
        if analysis is not None:
            common = {"batch_size": batch_size, "prepend_bos": prepend_bos}
            parts.append(analysis(model, edit, contrasts, **where, strength=strength, **common, **options))
    return Dose(
        strengths=tuple(tried),
        effects=tuple(effects),
        sides=tuple(one for one in sides if one is not None),
        control_effects=_table(beside, lambda pair: pair[0].effect, len(tried)),
        control_kl=_table(beside, lambda pair: float("nan") if pair[1] is None else pair[1].kl, len(tried)),
        contributions=tuple(parts),
    )


def _table(
    rows: Sequence[Sequence[tuple[Effect, Side | None]]], value: Callable[[Any], float], n: int
) -> Float[Tensor, "controls strengths"]:
    table = [[value(pair) for pair in row] for row in rows]
    return torch.tensor(table, dtype=torch.float64).reshape(len(rows), n)


class SideEffects:
    """What edits do to the predictions on texts that are none of their business.

    Args:
        model: a TransformerLens model.
        texts: a list, or a file as `evaluate` reads for "perplexity".
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.

    Raises:
        FileError: they cannot be read, or are all empty.
    """

    def __init__(self, model: Any, texts: Texts, *, batch_size: int = 16, prepend_bos: bool = True) -> None:
        benchmark = Perplexity()
        if isinstance(texts, (str, os.PathLike)):
            source, rows = os.fspath(texts), benchmark.rows(texts)
        else:
            source, rows = "texts", enumerate(texts, start=1)
        self._model, self._task = model, Task(benchmark, source, tuple(benchmark.read(source, rows)), None)
        self._common: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos, "progress": False}
        self._loss = evaluate(model, self._task, **self._common).scores["loss"]

    def of(self, edit: Edit, **where: Any) -> Side:
        """Those of an edit; arguments as in `applied`."""
        scores = evaluate(self._model, self._task, edit=edit, **where, **self._common).scores
        return Side(scores["kl"], scores["loss"] - self._loss)


def strength_at_kl(
    model: Any,
    edit: Edit,
    texts: Texts,
    kl: SupportsFloat,
    *,
    layers: LayerChoice | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    most: SupportsFloat = MOST,
    tolerance: SupportsFloat = 0.01,
    batch_size: int = 16,
    prepend_bos: bool = True,
) -> float:
    """The strength at which an edit diverges from the unedited model by so much, so that methods can be compared.

    Found between strengths that double from 1/4 by Brent's method, through scipy; docs/method.md 6.15.

    Args:
        model: a TransformerLens model.
        edit: an edit of any method.
        texts: a list of texts, or a file as `evaluate` reads for "perplexity".
        kl: the divergence KL(unedited ‖ edited), mean over the tokens of the texts, in nats.
        layers, combine, positions: as in `applied`.
        most: the largest strength to try.
        tolerance: relative, of the strength.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.

    Raises:
        InputError: a divergence that is not positive, or that no strength up to `most` reaches; says what is reached.
        Otherwise as `evaluate`.

    Example:
        >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
        >>> strength = sl.strength_at_kl(bed.model, edit, bed.documents[:10], kl=0.01)
        >>> found = sl.dose(bed.model, edit, bed.contrasts["dev"][:5], [strength], bed.documents[:10])
        >>> abs(found.sides[0].kl - 0.01) < 0.001
        True
    """
    from scipy.optimize import root_scalar

    edit = as_edit(edit)
    target, most, tolerance = as_number(kl, "kl"), as_number(most, "most"), as_number(tolerance, "tolerance")
    if not (target > 0 and most > 0 and tolerance > 0):
        raise InputError(f"kl {target:g}, most {most:g} and tolerance {tolerance:g}: expected numbers above 0")
    edit.check(model, layers, most, combine, positions, scoring=True)
    side = SideEffects(model, texts, batch_size=batch_size, prepend_bos=prepend_bos)
    known = {0.0: 0.0}

    def divergence(strength: float) -> float:
        if strength not in known:
            known[strength] = side.of(edit, layers=layers, strength=strength, combine=combine, positions=positions).kl
        return known[strength]

    low, high = 0.0, min(0.25, most)
    while divergence(high) < target:
        if high >= most:
            raise InputError(f"kl {target:g}: strength {most:g} diverges by {divergence(most):.3g} nats only")
        low, high = high, min(2 * high, most)
    return float(root_scalar(lambda at: divergence(at) - target, bracket=(low, high), rtol=tolerance).root)
