"""Do feature functions help? (Φ-SEA).

    python analyses/feature_maps.py [--model M --data DIR]

The edit of each behaviour with every feature function, fitted to the same demonstrations at the same size.
"""

from collections.abc import Iterable, Mapping

from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.subject import Subject
from sea_lens.paper.variants import Row, Variant, compared
from sea_lens.paper.words import beyond, sentence

NAMES = {"linear": "identity", "squared exponential": "squared_exponential", "tanh": "tanh", "ELU": "elu"}


def run(subject: Subject) -> Finding:
    """Fit and measure with every map."""

    def variants(behaviour: str) -> Mapping[str, Variant]:
        return {name: Variant(subject.fitted(behaviour, feature=feature)) for name, feature in NAMES.items()}

    return compared(subject, "Feature functions", variants, words)


def words(behaviour: str, rows: list[Row]) -> Iterable[str]:
    """The linear edit, and every other one by itself and beside it."""
    linear, *others = rows
    yield sentence("Linear", linear)
    for row in others:
        yield sentence(row["name"], row)
        yield beyond(row)


if __name__ == "__main__":
    command(run, __doc__)
