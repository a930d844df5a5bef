"""A finding as a part of a page: sentences, figures within the file, a table."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .findings import Written

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


def head(title: str) -> str:
    """What a page begins with."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{text(title)}</title><style>{STYLE}</style>"
    )


def links(names: Sequence[str]) -> str:
    """Links to the parts of a page."""
    return "<nav>" + " ".join(f"<a href='#{text(name)}'>{text(name)}</a>" for name in names) + "</nav>"


def body(found: Written, folder: Path, name: str, question: str) -> str:
    """Sentences, what was not run, figures and the table of a finding."""
    parts = [_told(found.paragraph), *(not_run(reason) for reason in found.not_run)]
    for figure, caption in found.figures.items():
        content = base64.b64encode((folder / figure).read_bytes()).decode("ascii")
        parts.append(
            f"<figure><img alt='{text(caption or question)}' src='data:image/png;base64,{content}'>"
            + (f"<figcaption>{text(caption)}</figcaption></figure>" if caption else "</figure>")
        )
    return "\n".join([*parts, _table(found.table, f"{name}.csv")])


def not_run(reason: str) -> str:
    """Why something was not run."""
    return f"<p class=not-run>Not run: {text(reason)}</p>"


def _told(paragraph: str) -> str:
    """A paragraph as a list; a line of one word is what the lines behind it are about."""
    lines = [text(line) for line in paragraph.splitlines()]
    shown = [f"<li>{line}</li>" if " " in line else f"<li class=about>{line.rstrip('.:')}</li>" for line in lines]
    return f"<ul class=told>{''.join(shown)}</ul>"


def _table(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    if not rows:
        return ""
    # Tables of scores have columns that are for reading by machines.
    columns = [column for column in SHOWN if column in rows[0]] if "difference" in rows[0] else list(rows[0])
    columns = [name for name in columns if any(row.get(name) not in (None, "") for row in rows[:MOST_ROWS])]
    names = "".join(f"<th>{text(column.replace('_', ' '))}</th>" for column in columns)
    cells = "".join(
        "<tr>" + "".join(f"<td>{_cell(row.get(column))}</td>" for column in columns) + "</tr>"
        for row in rows[:MOST_ROWS]
    )
    rest = f" (the first {MOST_ROWS} of {len(rows)} rows)" if len(rows) > MOST_ROWS else ""
    summary = f"<summary>Table{rest}: <a href='{name}'>{name}</a></summary>"
    return f"<details>{summary}<table><tr>{names}</tr>{cells}</table></details>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return "" if value is None else text(value)


def text(value: Any) -> str:
    """As HTML shows it."""
    return html.escape(str(value))
