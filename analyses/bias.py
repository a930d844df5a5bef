"""Is the model less biased, by condition and category? (the paper's figure of BBQ).

    python analyses/bias.py [--model M --data DIR]

Accuracy, unknown rate, bias scores and stereotypical response rate on BBQ: the edit of its preset, the linear edit, and
the one with the squared exponential.
"""

from collections.abc import Iterable

import pandas as pd

from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.subject import Subject
from sea_lens.paper.words import sentence
from sea_lens.plots.findings import changes

NAMES = {"SEA, linear": "identity", "Φ-SEA, squared exponential": "squared_exponential"}
OVERALL = ("accuracy", "unknown_rate", "stereotypical_rate", "s_amb/ambiguous", "s_dis/disambiguated")
BY_CONDITION = tuple(
    f"{score}/{one}" for score in ("accuracy", "unknown_rate") for one in ("ambiguous", "disambiguated")
)


def run(subject: Subject) -> Finding:
    """Every score of BBQ under both edits."""
    if reason := subject.missing("bias"):
        return Finding(pd.DataFrame(), "BBQ cannot be looked at.", not_run=(reason,))
    where, tables = subject.where("bias"), []
    for name, feature in NAMES.items():
        fitted = subject.fitted("bias", feature=feature)
        rows = subject.changes(subject.task("bias"), fitted.edit, fitted.shuffled(subject.draws), **where)
        tables.append(rows.assign(behaviour="bias", name=name))
    table = pd.concat(tables)
    figures = {
        "overall": changes(table.query("score in @OVERALL"), list(NAMES), "BBQ", "score"),
        "conditions": changes(
            table.query("score in @BY_CONDITION"),
            list(NAMES),
            "BBQ by condition",
            "score",
        ),
    }
    return Finding(table, "\n".join(words(table)), figures | by_category(table))


def by_category(table: pd.DataFrame) -> dict:
    """A figure of accuracies by category, where there are several."""
    parts = table["score"].str.extract(r"^accuracy/(\w+)/(.+)$")
    rows = table.assign(condition=parts[0], category=parts[1]).dropna(subset=["category"])
    if rows["category"].nunique() < 2:
        return {}
    named = rows.assign(score=rows["name"] + ", " + rows["condition"], name=rows["category"])
    return {"categories": changes(named, sorted(set(named["name"])), "Accuracy by category", "accuracy")}


def words(table: pd.DataFrame) -> Iterable[str]:
    """The accuracy of every edit overall and by condition, and its bias scores."""
    for name, rows in table.groupby("name", sort=False):
        found = {row["score"]: row for row in rows.to_dict("records")}
        for score in ("accuracy", "accuracy/ambiguous", "accuracy/disambiguated", "stereotypical_rate"):
            if score in found:
                yield sentence(str(name), found[score])


if __name__ == "__main__":
    command(run, __doc__)
