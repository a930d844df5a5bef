"""What does the released code do differently, and what does each difference do? (docs/method.md 11).

    python analyses/release.py [--model M --data DIR]

The edit as the paper describes it, and with one difference of the released code at a time that is an option here:
activations of the residual stream in place of those that are edited, the last one behind the final norm; neutral texts
that go on with the model's own answer; the mean of both projections with the scale of x lost. Two more differences
cannot be had: norms over tokens in place of coordinates make an edit depend on later tokens and on the batch, and a
feature function whose result is thrown away leaves only its inverse.
"""

from collections.abc import Iterable, Mapping

from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.subject import Subject
from sea_lens.paper.variants import Row, Variant, compared
from sea_lens.paper.words import sentence

READINGS = {
    "as the paper": {"neutral": "prompt", "fit_site": None},
    "read at hidden states": {"neutral": "prompt", "fit_site": "hidden_states"},
    "neutral texts generated": {"neutral": "generated", "fit_site": None, "max_new_tokens": 8},
    "both": {"neutral": "generated", "fit_site": "hidden_states", "max_new_tokens": 8},
}


def run(subject: Subject) -> Finding:
    """Fit with every reading; the site that is edited is always MLP outputs, as in the released code."""

    def variants(behaviour: str) -> Mapping[str, Variant]:
        return {
            name: Variant(subject.fitted(behaviour, reading={"site": "mlp_out", **reading}))
            for name, reading in READINGS.items()
        }

    return compared(subject, "Differences of the released code", variants, words)


def words(behaviour: str, rows: list[Row]) -> Iterable[str]:
    """What each difference adds to the edit."""
    paper, *others = rows
    yield sentence("As the paper", paper)
    for row in others:
        yield sentence(row["name"].capitalize(), row)
        yield f"That is {row['difference'] - paper['difference']:+.3f} beside the paper's."


if __name__ == "__main__":
    command(run, __doc__)
