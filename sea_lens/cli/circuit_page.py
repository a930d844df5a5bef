"""The page of `sea-lens circuit`: what it says of itself, of each edit, and its answers."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .._support.arguments import counted
from .._support.files import write_atomically
from ..models.token_positions import positions_name
from ..paper.findings import Written
from ..paper.sections import body, head, links, not_run, text
from ..spectral.controls import has_other_digest
from ..spectral.edit import SpectralEdit
from .circuit_questions import Question, Subject
from .circuit_words import FEWEST_CONTROLS

TITLE = "The circuit of an edit"


@dataclass(frozen=True)
class Answer:
    """What became of a question.

    Attributes:
        question: which.
        name: of its files.
        found: the answer; None where there is none.
        reason: why not.
    """

    question: Question
    name: str
    found: Written | None
    reason: str = ""


def write_page(answers: Mapping[str, Sequence[Answer]], subjects: Mapping[str, Subject], folder: Path) -> Path:
    """Write `index.html`; the same bytes for the same answers."""
    parts = [head(TITLE), f"<h1>{TITLE}</h1>", f"<p>{text(about(list(subjects.values())))}</p>"]
    parts.append(links([one.name for of in answers.values() for one in of]))
    for name, of_edit in answers.items():
        title = (name or os.fspath(folder.name)).capitalize()
        parts.append(f"<h1>{text(title)}</h1><p>{text(about_edit(subjects[name]))}</p>")
        for one in of_edit:
            parts.append(f"<h2 id='{text(one.name)}'>{text(one.question.asked)}</h2>")
            shown = not_run(one.reason) if one.found is None else body(one.found, folder, one.name, one.question.asked)
            parts.append(shown)
    path = folder / "index.html"
    write_atomically(path, "\n".join([*parts, "</html>"]) + "\n")
    return path


def about(subjects: Sequence[Subject]) -> str:
    """What the page shows and how its numbers are to be read, as the run was."""
    told = (
        "What carries the effect of an edit, from the whole of it to single ways. Behind a number stands its 95 % "
        "interval over contrasts."
    )
    n = min(len(one.control) for one in subjects)
    if n == 0:
        return f"{told} No control stands beside it: how much of it any edit would do is not told."
    told += (
        f" Beside it stands its control: the same measurement of {counted(n, 'edit')} fitted to demonstrations whose "
        "wanted and unwanted texts were swapped by the toss of a coin. What these do as well is not owed to labels. "
        f"With {n} of them no p-value is below {1 / (n + 1):.2g}"
    )
    if n < FEWEST_CONTROLS:
        told += f", so that they cannot show what is: that takes {FEWEST_CONTROLS}"
    return (
        f"{told}. A p-value that is called corrected holds for all numbers of one measurement at once, of weights for "
        "all that write or all that read; any other is that of its number alone."
    )


def about_edit(subject: Subject) -> str:
    """What an edit is, where and how it is applied, and on what it is measured."""
    edit, where = subject.edit, subject.edit.where(**(subject.where or {}))
    told = f"{type(edit).__name__} at {edit.site}, applied in layers {list(where.layers)}"
    ranks = dict(edit.ranks) if isinstance(edit, SpectralEdit) else None
    strengths = {layer: f"{float(strength):g}" for layer, strength in where.strengths.items()}
    alike = next(iter(strengths.values())) if len(set(strengths.values())) == 1 else strengths
    told += f" at strength {alike}, combine {where.combine}, positions {positions_name(where.positions)}"
    told += "" if ranks is None else f"; ranks {ranks}"
    told += (
        f". On {counted(len(subject.contrasts), 'contrast')}, beside {counted(len(subject.control), 'control edit')}."
    )
    if subject.demonstrations is not None and has_other_digest(edit, subject.demonstrations):
        told += " The demonstrations that were given are not those that it was fitted from, or not in their order."
    return told
