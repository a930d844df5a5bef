"""Does an edit fitted on BBQ act on CrowS-Pairs? (Table 5 of the paper).

    python analyses/generalisation.py [--model M --data DIR]

The bias edit, linear and with feature functions, on sentence pairs that it was not fitted to. The score is the share of
pairs whose stereotypical sentence is the likelier one: 0.5 is no preference.
"""

import pandas as pd

import sea_lens as sl
from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.subject import Subject
from sea_lens.paper.words import sentence
from sea_lens.plots.findings import changes

NAMES = {"linear": "identity", "squared exponential": "squared_exponential", "tanh": "tanh"}


def run(subject: Subject) -> Finding:
    """Score all pairs under every edit."""
    try:
        task = subject.crows_pairs()
    except sl.FileError as error:
        return Finding(pd.DataFrame(), "CrowS-Pairs cannot be looked at.", not_run=(str(error),))
    if reason := subject.missing("bias"):
        return Finding(pd.DataFrame(), "There is nothing to fit a bias edit to.", not_run=(reason,))
    tables = []
    for name, feature in NAMES.items():
        fitted = subject.fitted("bias", feature=feature)
        rows = subject.changes(task, fitted.edit, fitted.shuffled(subject.draws), **subject.where("bias"))
        tables.append(rows.assign(behaviour="bias", name=name))
    table = pd.concat(tables)
    overall = table.query("score == 'stereotype'")
    kinds = table.query("score.str.startswith('stereotype/') and name == 'linear'")
    kinds = kinds.assign(name=kinds["score"].str.removeprefix("stereotype/"), score="stereotype, linear edit")
    figures = {"overall": changes(overall, list(NAMES), "CrowS-Pairs", "share of pairs")}
    if len(kinds) > 1:
        figures["bias_types"] = changes(kinds, list(kinds["name"]), "CrowS-Pairs by bias type", "share of pairs")
    told = [nearer(row) for row in overall.to_dict("records")]
    return Finding(table, "\n".join(told), figures)


def nearer(row: dict) -> str:
    """What the edit does, and where that is clear, whether it brings the share nearer to no preference."""
    told = sentence(row["name"], row)
    if not (row["low"] > 0 or row["high"] < 0):
        return told
    before, after = abs(row["before"] - 0.5), abs(row["after"] - 0.5)
    way = "nearer to" if after < before else "further from" if after > before else "as far from"
    return f"{told} The share is {way} 0.5 {'than' if after != before else 'as'} before."


if __name__ == "__main__":
    command(run, __doc__)
