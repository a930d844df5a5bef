"""Which token's activation should be read? (Table 7 of the paper).

    python analyses/activation.py [--model M --data DIR]

Edits fitted to the activation of a text's last token, to the mean over its tokens, and to that of a random token.
"""

from collections.abc import Iterable, Mapping

from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.subject import Subject
from sea_lens.paper.variants import Row, Variant, compared
from sea_lens.paper.words import beyond, sentence

NAMES = {"last token": "last", "mean over tokens": "mean", "random token": "random"}


def run(subject: Subject) -> Finding:
    """Fit and measure with every reading."""

    def variants(behaviour: str) -> Mapping[str, Variant]:
        return {
            name: Variant(subject.fitted(behaviour, reading={"position": position})) for name, position in NAMES.items()
        }

    return compared(subject, "Activation read", variants, words)


def words(behaviour: str, rows: list[Row]) -> Iterable[str]:
    """Every reading, and the others beside the last token."""
    yield from (sentence(row["name"], row) for row in rows)
    yield from (beyond(row) for row in rows[1:])


if __name__ == "__main__":
    command(run, __doc__)
