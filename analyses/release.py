"""What does the released code do differently, and what does each difference do? (docs/method.md 11).

    python analyses/release.py [--model M --data DIR]

The edit as the paper describes it, and with one difference of the released code at a time: activations of the residual
stream in place of those that are edited, the last one behind the final norm; neutral texts that go on with the model's
own answer; norms over tokens in place of coordinates. Then the edit with a squared exponential, and the same with φ
thrown away when it is applied, so that only its inverse is left, which is the released code's.
"""

from collections.abc import Iterable, Mapping

from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.released import NormOverTokens, without_feature
from sea_lens.paper.subject import Subject
from sea_lens.paper.variants import Row, Variant, compared
from sea_lens.paper.words import beyond, sentence

PAPER, FEATURE = "as the paper", "with squared exponential"
HIDDEN = {"fit_site": "hidden_states"}
GENERATED = {"neutral": "generated", "max_new_tokens": 8}


def run(subject: Subject) -> Finding:
    """Fit with every reading; the site that is edited is always MLP outputs, as in the released code."""

    def variants(behaviour: str) -> Mapping[str, Variant]:
        reading = {"site": "mlp_out", "neutral": "prompt", "fit_site": None}
        paper = subject.fitted(behaviour, reading=reading, feature="identity")
        mapped = subject.fitted(behaviour, reading=reading, feature="squared_exponential")

        def read(**other: object) -> Variant:
            return Variant(subject.fitted(behaviour, reading={**reading, **other}, feature="identity"))

        return {
            PAPER: Variant(paper),
            "read at hidden states": read(**HIDDEN),
            "neutral texts generated": read(**GENERATED),
            "both": read(**HIDDEN, **GENERATED),
            "norm over tokens": Variant(paper, turned=NormOverTokens.of),
            FEATURE: Variant(mapped),
            "φ thrown away": Variant(mapped, turned=without_feature, reference=FEATURE),
        }

    return compared(subject, "Differences of the released code", variants, words)


def words(behaviour: str, rows: list[Row]) -> Iterable[str]:
    """What each difference adds to the edit."""
    paper, *others = rows
    yield sentence("As the paper", paper)
    for row in others:
        yield sentence(row["name"], row)
        yield beyond(row)


if __name__ == "__main__":
    command(run, __doc__)
