"""What an edit does to the text that the model writes, and which of its parts do it (docs/method.md 7.7)."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer, given
from .._support.progress import tracked
from ..edits.base import Edit, as_edit
from ..edits.generation import generate
from ..edits.several import Several
from ..edits.where import LayerChoice, Positions, Strength, Where
from ..errors import DemonstrationError, InputError, SeaLensWarning
from ..measure.effects import checked_controls, control_places
from ..texts.demonstrations import Contrasts
from ..texts.items import Contrast
from .games import METHODS, Coalition, Game, Worths, check_parts
from .interacting import EDITS, LAYERS, check_composed, played
from .interaction_results import Interactions
from .study import with_control

Score: TypeAlias = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Of prompts and their continuations, a number for each."""


def written(
    model: Any,
    edit: Edit,
    prompts: str | Iterable[str],
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    max_new_tokens: int = 16,
    batch_size: int = 16,
    prepend_bos: bool = True,
) -> Contrasts:
    """What the edited model writes against what the unedited one writes, greedily, as contrasts (docs/method.md 7.7).

    The target is the continuation under the edit and the foil that without it, so that every analysis of contrasts asks
    what makes the model write the one in place of the other.

    Args:
        model: a TransformerLens model.
        edit: the edit.
        prompts: texts.
        layers, strength, combine, positions: as in `applied`.
        max_new_tokens: longest continuation in tokens.
        batch_size: prompts at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.

    Returns:
        A contrast for each prompt that is continued otherwise.

    Raises:
        DemonstrationError: no prompt is continued otherwise.
        Otherwise as `generate`.

    Warns:
        SeaLensWarning: some prompts are left out, since they are continued alike, or by nothing; says how many.

    Example:
        >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
        >>> prompts = [one.prompt for one in bed.contrasts["dev"][:60]]
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", sl.SeaLensWarning)
        ...     contrasts = sl.written(bed.model, edit, prompts, max_new_tokens=2)
        >>> len(contrasts) < 60, sl.effect(bed.model, edit, contrasts).effect > 0
        (True, True)
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "prepend_bos": prepend_bos,
    }
    edited = generate(model, texts, as_edit(edit), layers, strength, combine, positions, **options)
    unedited = generate(model, texts, **options)
    found = [
        Contrast(prompt, after, before)
        for prompt, after, before in zip(texts, edited, unedited, strict=True)
        if after != before and after.strip() and before.strip()
    ]
    if not found:
        raise DemonstrationError(f"none of {len(texts)} prompts is continued otherwise under the edit")
    if len(found) < len(texts):
        warnings.warn(
            f"{len(texts) - len(found)} of {len(texts)} prompts are left out: they are continued alike, or by nothing",
            SeaLensWarning,
            stacklevel=2,
        )
    return Contrasts(found)


@dataclass(frozen=True, eq=False)
class ScoreContributions(Interactions):
    """What each part of an edit adds to a score of the text that the model writes (docs/method.md 7.7).

    Attributes:
        before, after: the continuations without and under the edit.
        Others as in `Interactions`; "contrasts" are prompts, and the unit is that of the score.
    """

    before: tuple[str, ...] = field(kw_only=True, repr=False)
    after: tuple[str, ...] = field(kw_only=True, repr=False)

    @property
    def unit(self) -> str:
        """That of the score."""
        return "score"


def score_contributions(
    model: Any,
    edit: Edit,
    prompts: str | Iterable[str],
    score: Score,
    of: str = LAYERS,
    method: str = "shapley",
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    max_new_tokens: int = 16,
    stop: str | Iterable[str] = (),
    batch_size: int = 16,
    prepend_bos: bool = True,
    permutations: int = 64,
    seed: int = 0,
    control: Iterable[Edit] = (),
    progress: bool = False,
) -> ScoreContributions:
    """What each layer of an edit adds to a score of what the model writes, by finite differences (docs/method.md 7.7).

    Args:
        model: a TransformerLens model.
        edit: the edit.
        prompts: texts, which are continued greedily.
        score: a judge, a classifier, or anything that gives a finite number for each (prompts, continuations).
        of: the players: "layers", or "edits" of a `composed` edit.
        method: as in `interactions`; a set of players that is on is one run of generation, and one call of the score.
        layers, strength, combine, positions: as in `applied`.
        max_new_tokens: longest continuation in tokens.
        stop: texts that end a continuation.
        batch_size: prompts at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        permutations, seed: as in `interactions`.
        control: edits to measure in the same way beside this one, such as `sl.permuted` ones.
        progress: show a progress bar.

    Returns:
        Values of players and pairs, in the unit of the score, with the texts before and after.

    Raises:
        InputError: an unknown method, fewer than two players, no prompts, or scores that are no finite number for each.
        Otherwise as `generate`.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    if of not in (LAYERS, EDITS):
        raise InputError(f"unknown players {of!r}: expected {LAYERS!r} or {EDITS!r}")
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise InputError("expected at least one prompt")
    drawn = {"permutations": as_integer(permutations, "permutations", least=1), "seed": as_integer(seed, "seed")}
    edit, control = as_edit(edit), checked_controls(control)
    if of == EDITS:
        check_composed(edit, control)
    places = edit.check(model, layers, strength, combine, positions)

    def scored(one: Edit | None, where: Where | None) -> tuple[list[str], Float[Tensor, " prompts"]]:
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "stop": stop, "batch_size": batch_size}
        with contextlib.nullcontext() if one is None or where is None else one.put(model, where):
            found = generate(model, texts, prepend_bos=prepend_bos, **options)
        return found, _checked(score(texts, found), len(texts))

    before, unedited = scored(None, None)

    def measure(one: Edit, where: Where) -> ScoreContributions:
        players: tuple[Any, ...] = where.layers
        if of == EDITS:
            assert isinstance(one, Several)
            players = tuple(range(len(one.edits)))
        else:
            check_parts(one, model, where, scoring=False)
        if len(players) < 2:
            raise InputError(f"score_contributions needs at least two players, got {list(players)}")
        written_by: dict[Coalition, list[str]] = {}

        def worths(sets: Sequence[Coalition], what: str) -> Worths:
            worth: dict[Coalition, Tensor] = {}
            for some in tracked(sets, what, len(sets), show=progress):
                if of == LAYERS:
                    alone, at = one, where.with_strengths({k: s for k, s in where.strengths.items() if k in some})
                else:
                    assert isinstance(one, Several)
                    alone, at = as_edit(one.only(some)), where
                written_by[some], worth[some] = scored(alone, at)
            return worth

        game = Game(players, worths, {frozenset(): unedited})
        effects = game.joint(method)
        return ScoreContributions(
            item_effects=effects,
            item_joint=effects,
            before=tuple(before),
            after=tuple(written_by[game.everybody]),
            **played(game, method, drawn),
        )

    # All are checked before the first of them writes.
    all_places = [(other, other.check(model, **control_places(other, places, combine))) for other in control]
    return with_control(measure(edit, places), [measure(other, where) for other, where in all_places])


def _checked(scores: Any, n: int) -> Float[Tensor, " prompts"]:
    try:
        found = [float(one) for one in scores]
    except (TypeError, ValueError):
        found = []
    if len(found) != n or not all(map(math.isfinite, found)):
        raise InputError(f"expected a finite score for each of {n} continuations, got {given(scores)}")
    return torch.tensor(found, dtype=torch.float64)
