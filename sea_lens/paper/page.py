"""One page of all findings: a self-contained HTML file, the paper's numbers beside ours."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .known import Known, known, said, sources
from .run import Outcome
from .sections import body, head, links, not_run, text
from .words import changed

ABOUT = (
    "Every table and figure of Qiu et al. (NeurIPS 2024, arXiv 2405.09719), measured on this model. A change has a "
    "95&nbsp;% interval over questions, and beside it stands its control: the same edit fitted to demonstrations whose "
    "wanted and unwanted texts were swapped by the toss of a coin. Where these do as much, the labels are not why the "
    "edit does something. The paper reports neither."
)


def write_page(outcomes: Sequence[Outcome], settings: Mapping[str, Any], folder: Path) -> Path:
    """Write `index.html` into the folder of the findings; the same bytes for the same findings."""
    from .._support.files import write_atomically

    told = {name: value for name, value in settings.items() if name != "about" and value not in (None, [], ())}
    given = ", ".join(f"{name} {value}" for name, value in told.items())
    about = "".join(f"<li>{text(line)}</li>" for line in settings.get("about", ()))
    parts = [
        head(f"The paper, on {settings['model']}"),
        f"<h1>Spectral editing of activations, on {text(settings['model'])}</h1>",
        f"<p>{ABOUT}</p><p>Settings: {text(given)}.</p><ul>{about}</ul>",
        links([one.item.name for one in outcomes]),
        *(_section(one, folder) for one in outcomes),
        "<h2>Sources of the paper's numbers</h2><ul>",
        *(f"<li><b>{text(name)}</b>: {text(told)}</li>" for name, told in sources().items()),
        "</ul></html>",
    ]
    path = folder / "index.html"
    write_atomically(path, "\n".join(parts) + "\n")
    return path


def _section(outcome: Outcome, folder: Path) -> str:
    item, found = outcome.item, outcome.finding
    where = f" <small>({text(item.where)})</small>" if item.where else " <small>(not in the paper)</small>"
    parts = [
        f"<h2 id='{item.name}'>{text(item.question)}{where}</h2>",
        _paper(item.name, bool(item.where), found.table if found else ()),
    ]
    shown = not_run(outcome.reason) if found is None else body(found, folder, item.name, item.question)
    return "\n".join([*parts, shown])


def _paper(item: str, is_of_paper: bool, ours: Sequence[Mapping[str, Any]]) -> str:
    """What the paper has, number by number, beside what was measured here."""
    rows = known(item)
    if not rows and not is_of_paper:
        return ""
    if not rows:
        return f"<p class=paper>The paper: {text(said(item) or 'its numbers are not known to us')}.</p>"
    names = ("the paper's model", "method", "score", "the paper", "source", "here", "control", "p")
    top = "<tr>" + "".join(f"<th>{text(name)}</th>" for name in names) + "</tr>"
    told = f"<p class=paper>The paper: {text(said(item))}.</p>" if said(item) else ""
    rest = "".join(
        f"<tr>{''.join(f'<td class=text>{text(cell)}</td>' for cell in (*_of_paper(row), *beside))}</tr>"
        for row in rows
        for beside in [_here(row, one) for one in row.here(ours)] or [("not run", "", "")]
    )
    return f"{told}<table class=paper>{top}{rest}</table>"


def _of_paper(row: Known) -> tuple[str, ...]:
    # Scores in percent there, and as shares here.
    unit = 1 if "column" in row.ours else 100
    return row.model, row.method, row.score, f"{row.before / unit:.4g} → {row.after / unit:.4g}", row.source


def _here(known_row: Known, row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Before, after, the change with its interval; the range of the control; the p-value."""
    # What is not defined is null in a file.
    row = {name: math.nan if value is None else value for name, value in row.items()}
    model = f"{row['model']}: " if "model" in row else ""
    if (column := known_row.ours.get("column")) is not None:
        ends = [row.get(f"{column}_{end}", math.nan) for end in ("low", "high")]
        told = "" if any(map(math.isnan, ends)) else f" (single turns {ends[0]:.2f} to {ends[1]:.2f})"
        return f"{model}{row[column]:.2f}{told}", "", ""
    low, p = row.get("control_low", math.nan), row.get("p", math.nan)
    beside = "none" if math.isnan(low) else f"{low:+.4f} to {row['control_high']:+.4f}"
    return f"{model}{changed(row)}", beside, "" if math.isnan(p) else f"{p:.2f}"


def counts(outcomes: Iterable[Outcome]) -> str:
    """How many items were run, were there, and could not be run."""
    outcomes = list(outcomes)
    ran = sum(one.finding is not None and not one.was_there for one in outcomes)
    there, failed = sum(one.was_there for one in outcomes), sum(one.finding is None for one in outcomes)
    return f"{ran} run, {there} there already, {failed} not run"
