"""Are generated answers more truthful and informative, and what is the best of several? (Table 1 of the paper).

    python analyses/generations.py [--model M --data DIR --judge TRUTH INFO]

Greedy answers to TruthfulQA, unedited, under the spectral edit and behind examples in context, and the best of four
that are drawn at temperature 1, rated by judges: two models that say yes or no to "True:" and "Helpful:", as
TruthfulQA's do (such as allenai/truthfulqa-truth-judge-llama2-7B and allenai/truthfulqa-info-judge-llama2-7B). Of the
shipped model's questions all answers are known, and no model is needed. The best of several is chosen by the judge that
rates it: its score says what could be had, and not what a model does by itself.
"""

from collections.abc import Iterable

import pandas as pd

import sea_lens as sl
from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.judged import SCORES, JudgedAnswers
from sea_lens.paper.subject import Subject
from sea_lens.paper.words import sentence
from sea_lens.plots.findings import changes

SHOTS, N = 4, 4
NOT_RUN = "Info and Truth: they need judges, --judge TRUTH INFO"


def run(subject: Subject) -> Finding:
    """Generate and rate with each method."""
    if reason := subject.missing("truth"):
        return Finding(pd.DataFrame(), "TruthfulQA cannot be looked at.", not_run=(reason,))
    if subject.judge is None:
        return Finding(pd.DataFrame(), "Generated answers cannot be rated.", not_run=(NOT_RUN,))
    asked = subject.task("truth")
    one, best = (sl.Task(JudgedAnswers(subject.judge, n), asked.source, asked.items, asked.template) for n in (1, N))
    fitted, where = subject.fitted("truth"), subject.where("truth")
    examples = sl.in_context(subject.model, subject.demonstrations("truth"), SHOTS, subject.separator)
    shuffled = fitted.shuffled(subject.draws)
    tables = [
        subject.changes(one, fitted.edit, shuffled, **where).assign(name="SEA"),
        subject.changes(one, examples).assign(name="ICL"),
        subject.changes(best, fitted.edit, shuffled, **where).assign(name=f"SEA, best of {N}"),
        subject.changes(best, examples).assign(name=f"ICL, best of {N}"),
    ]
    table = pd.concat(tables).assign(behaviour="truth")
    order = {score: place for place, score in enumerate(SCORES)}
    table = table.sort_values("score", key=lambda column: column.map(order), kind="stable")
    figures = {"scores": changes(table, list(dict.fromkeys(table["name"])), "Generated answers, rated", "share")}
    return Finding(table, "\n".join(words(table)), figures)


def words(table: pd.DataFrame) -> Iterable[str]:
    """What each method changes; the best of several beside the best of several without an edit."""
    for row in table.query("score == 'truth_and_info'").to_dict("records"):
        yield sentence(row["name"], row)


if __name__ == "__main__":
    command(run, __doc__)
