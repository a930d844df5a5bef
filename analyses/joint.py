"""Does one edit of both behaviours do what two do? (Table 6 of the paper).

    python analyses/joint.py [--model M --data DIR]

For the questions of each behaviour: the edit fitted to its own demonstrations, the one fitted to both behaviours', and
the one fitted to the other behaviour's alone. All three have the settings of the behaviour that is measured, so that
they differ in their demonstrations alone.
"""

from collections.abc import Iterable, Mapping

from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.material import BEHAVIOURS
from sea_lens.paper.subject import Subject
from sea_lens.paper.variants import Row, Variant, compared
from sea_lens.paper.words import beyond, sentence


def run(subject: Subject) -> Finding:
    """Fit to each and to both; nothing to compare where one is missing."""
    reasons = [f"{name}: {reason}" for name in BEHAVIOURS if (reason := subject.missing(name))]

    def variants(behaviour: str) -> Mapping[str, Variant]:
        (other,) = {*BEHAVIOURS} - {behaviour}
        own, both, others = (subject.fitted(behaviour, of=of) for of in (behaviour, "+".join(BEHAVIOURS), other))
        return {"specialised": Variant(own), "joint": Variant(both), f"fitted to {other} alone": Variant(others)}

    if reasons:
        nothing = compared(subject, "Joint and specialised", variants, words, ())
        return Finding(nothing.table, "Both behaviours are needed.", not_run=tuple(reasons))
    return compared(subject, "Joint and specialised", variants, words)


def words(behaviour: str, rows: list[Row]) -> Iterable[str]:
    """Specialised, joint, and the two beside each other; whether the other behaviour's edit carries over."""
    own, both, other = rows
    yield sentence("Specialised", own)
    yield sentence("Joint", both)
    yield beyond(both, "Joint")
    yield sentence(other["name"], other)


if __name__ == "__main__":
    command(run, __doc__)
