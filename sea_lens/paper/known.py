"""The paper's own numbers, as far as they are known to us, each with where it was read (`known.json`)."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Known:
    """A number of the paper.

    Attributes:
        item: name of the table or figure.
        model, method, score: what it is of.
        before, after: without and with the edit; in percent, but for times.
        source: where it was read: "abstract", or "second hand".
        ours: cells by which the same number is found in the table of the analysis, and perhaps its "column".
    """

    item: str
    model: str
    method: str
    score: str
    before: float
    after: float
    source: str
    ours: Mapping[str, str]

    def here(self, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Our rows of the same thing; of several models those of the paper's own, where it is among them."""
        wanted = {column: value for column, value in self.ours.items() if column != "column"}
        found = [row for row in rows if all(row.get(column) == value for column, value in wanted.items())]
        # By the first word of its name, such as gemma: those of the hub go on differently.
        family = self.model.lower().split("-")[0]
        same = [row for row in found if family in str(row.get("model", "")).lower()]
        return same or found


def known(item: str) -> list[Known]:
    """Those of an item."""
    return [Known(**row) for row in _content()["numbers"] if row["item"] == item]


def said(item: str) -> str:
    """What the paper says of an item without a number that we know; nothing where it says nothing."""
    return _content()["said"].get(item, "")


def sources() -> dict[str, str]:
    """What the names of sources stand for."""
    return dict(_content()["sources"])


@cache
def _content() -> dict[str, Any]:
    return json.loads(files(__package__ or "sea_lens.paper").joinpath("known.json").read_text(encoding="utf-8"))
