"""Does it hold for other models? (Table 2 of the paper).

    python analyses/models.py [--models M M … --data DIR] [--preset paper]

The linear edit and the one with the squared exponential on TruthfulQA and on BBQ, for every model of a list. With
`--preset paper` and no list these are the paper's six, which the hub has behind licences. A model that cannot be loaded
is named with the reason, and the others are measured.
"""

from collections.abc import Iterable, Mapping

import pandas as pd

import sea_lens as sl
from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.subject import Subject
from sea_lens.paper.variants import Row, Variant, compared
from sea_lens.paper.words import sentence

NAMES = {"SEA": "identity", "Φ-SEA": "squared_exponential"}


def run(subject: Subject) -> Finding:
    """Both edits on every model, one model after another."""
    tables, told, figures, not_run = [], [], {}, []
    for number, one in enumerate(subject.all_models()):
        try:
            found = on_one(one)
        except (sl.SeaLensError, OSError) as error:
            not_run.append(f"{one.name}: {' '.join(str(error).split())[:300]}")
            continue
        tables.append(found.table.assign(model=one.name))
        told += [f"{one.name}:", *found.paragraph.splitlines()]
        figures |= {f"{number}_{name}": axes for name, axes in found.figures.items()}
        not_run += found.not_run
    table = pd.concat(tables) if tables else pd.DataFrame()
    return Finding(
        table, "\n".join(told) or "No model could be loaded.", figures, not_run=tuple(dict.fromkeys(not_run))
    )


def on_one(subject: Subject) -> Finding:
    """Both edits on one model."""

    def variants(behaviour: str) -> Mapping[str, Variant]:
        return {name: Variant(subject.fitted(behaviour, feature=feature)) for name, feature in NAMES.items()}

    return compared(subject, subject.name.rsplit("/", 1)[-1], variants, words)


def words(behaviour: str, rows: list[Row]) -> Iterable[str]:
    """Both edits."""
    return (sentence(row["name"], row) for row in rows)


if __name__ == "__main__":
    command(run, __doc__)
