"""One page of all findings: a self-contained HTML file, the paper's numbers beside ours."""

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .known import Known, known, said, sources
from .run import Outcome
from .words import changed

# Rows of a table that are shown; all are in its CSV.
MOST_ROWS = 40
SHOWN = (
    "behaviour",
    "name",
    "score",
    "before",
    "after",
    "difference",
    "low",
    "high",
    "control_low",
    "control_high",
    "p",
    "reference",
    "more",
    "more_low",
    "more_high",
)
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; }
table { border-collapse: collapse; font-size: .85rem; margin: .8rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, td.text { text-align: left; } img { max-width: 100%; height: auto; }
.not-run { color: #6b4e00; background: #fff7e0; padding: .4rem .8rem; } .paper { color: #444; }
table.paper th, table.paper td { white-space: normal; } table.paper { display: table; }
.told { padding-left: 1.2rem; } .told .about { list-style: none; margin: .5rem 0 0 -1.2rem; font-weight: 600; }
figure { margin: 1rem 0; } figcaption { font-size: .85rem; color: #444; } nav a { margin-right: .8rem; }
"""


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
    about = "".join(f"<li>{_text(line)}</li>" for line in settings.get("about", ()))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>The paper, on {_text(settings['model'])}</title><style>{STYLE}</style>",
        f"<h1>Spectral editing of activations, on {_text(settings['model'])}</h1>",
        f"<p>{ABOUT}</p><p>Settings: {_text(given)}.</p><ul>{about}</ul>",
        "<nav>" + "".join(f"<a href='#{one.item.name}'>{_text(one.item.name)}</a>" for one in outcomes) + "</nav>",
        *(_section(one, folder) for one in outcomes),
        "<h2>Sources of the paper's numbers</h2><ul>",
        *(f"<li><b>{_text(name)}</b>: {_text(told)}</li>" for name, told in sources().items()),
        "</ul></html>",
    ]
    path = folder / "index.html"
    write_atomically(path, "\n".join(parts) + "\n")
    return path


def _section(outcome: Outcome, folder: Path) -> str:
    item, found = outcome.item, outcome.finding
    where = f" <small>({_text(item.where)})</small>" if item.where else " <small>(not in the paper)</small>"
    parts = [
        f"<h2 id='{item.name}'>{_text(item.question)}{where}</h2>",
        _paper(item.name, bool(item.where), found.table if found else ()),
    ]
    if found is None:
        return "\n".join([*parts, f"<p class=not-run>Not run: {_text(outcome.reason)}</p>"])
    parts.append(_told(found.paragraph))
    parts += [f"<p class=not-run>Not run: {_text(reason)}</p>" for reason in found.not_run]
    for name, caption in found.figures.items():
        content = base64.b64encode((folder / name).read_bytes()).decode("ascii")
        parts.append(
            f"<figure><img alt='{_text(caption or item.question)}' src='data:image/png;base64,{content}'>"
            + (f"<figcaption>{_text(caption)}</figcaption></figure>" if caption else "</figure>")
        )
    parts.append(_table(found.table, f"{item.name}.csv"))
    return "\n".join(parts)


def _told(paragraph: str) -> str:
    """A paragraph as a list; a line of one word is what the lines behind it are about."""
    lines = [_text(line) for line in paragraph.splitlines()]
    shown = [f"<li>{line}</li>" if " " in line else f"<li class=about>{line.rstrip('.:')}</li>" for line in lines]
    return f"<ul class=told>{''.join(shown)}</ul>"


def _paper(item: str, is_of_paper: bool, ours: Sequence[Mapping[str, Any]]) -> str:
    """What the paper has, number by number, beside what was measured here."""
    rows = known(item)
    if not rows and not is_of_paper:
        return ""
    if not rows:
        return f"<p class=paper>The paper: {_text(said(item) or 'its numbers are not known to us')}.</p>"
    names = ("the paper's model", "method", "score", "the paper", "source", "here", "control", "p")
    head = "<tr>" + "".join(f"<th>{_text(name)}</th>" for name in names) + "</tr>"
    told = f"<p class=paper>The paper: {_text(said(item))}.</p>" if said(item) else ""
    body = "".join(
        f"<tr>{''.join(f'<td class=text>{_text(cell)}</td>' for cell in (*_of_paper(row), *beside))}</tr>"
        for row in rows
        for beside in [_here(row, one) for one in row.here(ours)] or [("not run", "", "")]
    )
    return f"{told}<table class=paper>{head}{body}</table>"


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


def _table(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    if not rows:
        return ""
    # Tables of scores have columns that are for reading by machines.
    columns = [column for column in SHOWN if column in rows[0]] if "difference" in rows[0] else list(rows[0])
    columns = [name for name in columns if any(row.get(name) not in (None, "") for row in rows[:MOST_ROWS])]
    head = "".join(f"<th>{_text(column.replace('_', ' '))}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(row.get(column))}</td>" for column in columns) + "</tr>"
        for row in rows[:MOST_ROWS]
    )
    rest = f" (the first {MOST_ROWS} of {len(rows)} rows)" if len(rows) > MOST_ROWS else ""
    summary = f"<summary>Table{rest}: <a href='{name}'>{name}</a></summary>"
    return f"<details>{summary}<table><tr>{head}</tr>{body}</table></details>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return "" if value is None else _text(value)


def _text(value: Any) -> str:
    return html.escape(str(value))


def counts(outcomes: Iterable[Outcome]) -> str:
    """How many items were run, were there, and could not be run."""
    outcomes = list(outcomes)
    ran = sum(one.finding is not None and not one.was_there for one in outcomes)
    there, failed = sum(one.was_there for one in outcomes), sum(one.finding is None for one in outcomes)
    return f"{ran} run, {there} there already, {failed} not run"
