"""Do feature functions help? (Φ-SEA).

    python analyses/feature_maps.py [--model M --data DIR]

The edit of each behaviour with every feature function, fitted to the same demonstrations at the same size.
"""

from collections.abc import Iterable, Mapping

from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.subject import Subject
from sea_lens.paper.variants import Row, Variant, compared
from sea_lens.paper.words import sentence

NAMES = {"linear": "identity", "squared exponential": "squared_exponential", "tanh": "tanh", "ELU": "elu"}


def run(subject: Subject) -> Finding:
    """Fit and measure with every map."""

    def variants(behaviour: str) -> Mapping[str, Variant]:
        return {name: Variant(subject.fitted(behaviour, feature=feature)) for name, feature in NAMES.items()}

    return compared(subject, "Feature functions", variants, words)


def words(behaviour: str, rows: list[Row]) -> Iterable[str]:
    """The linear edit, and the best other one where it does more."""
    linear, best = rows[0], max(rows, key=lambda row: row["difference"])
    yield sentence("Linear", linear)
    yield "No feature function does more." if best is linear else sentence(f"The most does {best['name']}", best)


if __name__ == "__main__":
    command(run, __doc__)
