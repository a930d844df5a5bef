"""Which parts of the edit does its effect need? (Table 3 of the paper).

    python analyses/ablation.py [--model M --data DIR]

The whole edit, either of its two projections alone, the mean of both in place of their sum, fewer layers, and the roles
of wanted and unwanted reversed.
"""

from collections.abc import Iterable, Mapping

from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.subject import Subject
from sea_lens.paper.variants import Row, Variant, compared
from sea_lens.paper.words import beyond, sentence


def run(subject: Subject) -> Finding:
    """Apply every variant to every behaviour."""
    few = max(1, min(3, subject.n_layers // 2))
    changes = {
        "whole edit": {},
        "positive only": {"combine": "positive_only"},
        "negative only": {"combine": "negative_only"},
        "averaging": {"combine": "average"},
        f"top {few} layer{'s' * (few > 1)}": {"layers": f"last-{few}"},
        f"bottom {few} layer{'s' * (few > 1)}": {"layers": f"first-{few}"},
        "reversed": {"combine": "reverse"},
    }

    def variants(behaviour: str) -> Mapping[str, Variant]:
        fitted = subject.fitted(behaviour)
        return {name: Variant(fitted, change) for name, change in changes.items()}

    return compared(subject, "Parts of the edit", variants, words)


def words(behaviour: str, rows: list[Row]) -> Iterable[str]:
    """Every part beside the whole, and whether reversing the roles turns the sign."""
    whole, *parts = rows
    yield sentence("Whole edit", whole)
    yield from (beyond(row) for row in parts)
    yield sentence("Reversed", parts[-1])


if __name__ == "__main__":
    command(run, __doc__)
