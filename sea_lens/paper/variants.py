"""Variants of an edit side by side: what most of the paper's tables are."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from .._support.tables import rows_of
from ..edits.base import Edit
from ..evaluation.results import Evaluation
from ..plots.findings import changes
from ..spectral.edit import SpectralEdit
from .findings import Finding
from .material import BEHAVIOURS
from .subject import Fitted, Subject


@dataclass(frozen=True)
class Variant:
    """One way to fit and apply the edit of a behaviour.

    Attributes:
        fitted: the edit with its demonstrations.
        where: changes of where and how it acts: arguments of `applied`.
        turned: what is made of the edit, and of its controls, before they are applied.
        reference: name of the variant that it is compared with, one before it; by default the first.
    """

    fitted: Fitted
    where: Mapping[str, Any] = field(default_factory=dict)
    turned: Callable[[SpectralEdit], Edit] = lambda edit: edit
    reference: str | None = None


Row = dict[str, Any]
Words = Callable[[str, list[Row]], Iterable[str]]


def compared(
    subject: Subject,
    title: str,
    variants: Callable[[str], Mapping[str, Variant]],
    words: Words,
    behaviours: Iterable[str] = BEHAVIOURS,
) -> Finding:
    """Every variant of every behaviour on its benchmark, beside the same variant fitted to shuffled demonstrations.

    Args:
        subject: what is worked on.
        title: of the figures.
        variants: of a behaviour, by name.
        words: sentences on a behaviour, from the row of every variant that has the behaviour's main score.
        behaviours: those to look at, where the data allow.
    """
    tables, figures, told, not_run = [], {}, [], []
    for behaviour in behaviours:
        if reason := subject.missing(behaviour):
            not_run.append(f"{behaviour}: {reason}")
            continue
        named, where = variants(behaviour), subject.where(behaviour)
        controls: dict[int, list[Any]] = {}
        rows, first = [], next(iter(named))
        evaluated: dict[str, Evaluation] = {}
        for name, one in named.items():
            # Variants of one fit share its controls.
            beside = controls.setdefault(id(one.fitted), []) or one.fitted.shuffled(subject.draws)
            controls[id(one.fitted)] = beside
            edit, *turned = map(one.turned, [one.fitted.edit, *beside])
            acting = {**where, **one.where}
            evaluated[name] = subject.evaluation(subject.task(behaviour), edit, **acting)
            reference = one.reference or first
            options = {"after": evaluated[name], "reference": (reference, evaluated[reference])}
            rows.append(subject.measured(behaviour, name, edit, turned, **options, **acting))
        table = pd.concat(rows)
        tables.append(table)
        figures[behaviour] = changes(table, list(named), f"{title}: {behaviour}", "score")
        told += [f"{behaviour.capitalize()}.", *words(behaviour, main_rows(table))]
    captions = dict.fromkeys(figures, f"{title}: change of the scores, beside the same variant of its controls")
    table = pd.concat(tables) if tables else pd.DataFrame()
    return Finding(table, "\n".join(told), figures, captions, tuple(not_run))


def main_rows(table: pd.DataFrame) -> list[Row]:
    """The row of every name that has the behaviour's main score, in the table's order."""
    return rows_of(table.drop_duplicates("name"))
