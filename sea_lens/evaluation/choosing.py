"""Which setting of a grid to take, and how sure that is (docs/method.md 6.12)."""

import math
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from typing import Any

from .._support.arguments import given
from .._support.statistics import Interval
from ..errors import InputError
from ..spectral.edit import SpectralEdit
from ..texts.overlap import packed_questions
from .results import Evaluation, compare
from .run import Task

CHOOSE = ("best", "one_standard_error")
# Of a 95 % interval of a normal mean: what half its width is in standard errors.
_HALF_WIDTH = 1.959964


def check_choose(choose: str) -> None:
    """Refuse a rule that is not known.

    Raises:
        InputError: naming those that are.
    """
    if choose not in CHOOSE:
        raise InputError(f"unknown rule {choose!r}: expected one of {', '.join(CHOOSE)}")


def check_tasks(**tasks: Any) -> None:
    """Refuse what are no tasks; one that is None is left out.

    Raises:
        InputError: naming the argument.
    """
    for name, task in tasks.items():
        if task is not None and not isinstance(task, Task):
            raise InputError(f"{name} {given(task)}: expected a task, such as sl.Task.read gives")


def check_scores(wanted: Iterable[str], tasks: Sequence[Task]) -> None:
    """Refuse names of scores that no task has, as far as can be told without a model.

    Args:
        wanted: the names.
        tasks: the task, and the side effects where there are any.

    Raises:
        InputError: naming those that are unknown, and those that there are.
    """
    known: list[str] = []
    for task in tasks:
        names = task.benchmark.score_names(task.items)
        if names is None:
            return
        known += [side_effect_name(name, known) for name in names]
    if unknown := sorted({*wanted} - {*known}):
        raise InputError(f"unknown scores {unknown}: the tasks have {', '.join(known)}")


def side_effect_name(name: str, taken: Container[str]) -> str:
    """A score of the side effects among those of the task, whose names it must not take."""
    return f"side_effects.{name}" if name in taken else name


def choose_setting(
    scores: Sequence[float],
    strengths: Sequence[float],
    allowed: Sequence[bool],
    choose: str,
    evaluation: Callable[[int], Evaluation],
    maximise: str,
) -> tuple[int, int | None]:
    """The chosen setting and the runner-up, the best of the others that the budget allows; None where there is none.

    By "best" the largest score is taken, and the first of equal ones. By "one_standard_error" (Breiman et al. 1984)
    the weakest edit is: of the settings whose paired distance from the best is within one standard error of that
    distance, the one of smallest strength, and the first of equal ones.

    Args:
        scores, strengths, allowed: of each setting.
        choose: the rule.
        evaluation: runs a setting on the dev split.
        maximise: the score.
    """
    ranked = sorted((i for i, within in enumerate(allowed) if within), key=lambda i: (-scores[i], i))
    # A score that is NaN is the best of none.
    ranked = [i for i in ranked if not math.isnan(scores[i])] or ranked
    chosen = best = ranked[0]
    if choose == "one_standard_error":
        top = evaluation(best)
        for i in sorted(ranked, key=lambda i: (abs(strengths[i]), i)):
            if i == best or (abs(strengths[i]) >= abs(strengths[best])):
                break
            behind = difference(evaluation(i), top, maximise)
            error = (behind.high - behind.low) / (2 * _HALF_WIDTH)
            if behind.mean <= error or behind.mean == 0:
                chosen = i
                break
    others = [i for i in ranked if i != chosen]
    return chosen, others[0] if others else None


def difference(before: Evaluation, after: Evaluation, score: str) -> Interval:
    """Paired interval of after − before of one score."""
    return compare(before, after).intervals[score]


def chosen_on(edit: SpectralEdit, tasks: Sequence[Task]) -> SpectralEdit:
    """The edit with the questions that it was chosen on in its provenance, so that they are noticed in a test."""
    records: list[dict[str, Any]] = [
        {
            **{"benchmark": task.benchmark.name, "n": len(task.items), "sha256": task.digest},
            "questions": packed_questions(task.questions),
        }
        for task in tasks
    ]
    return replace(edit, provenance={**edit.provenance, "chosen_on": records})
