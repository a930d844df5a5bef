"""What an analysis finds: a table, figures, and a paragraph; written to a folder, and read again from there."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .._support.files import write_atomically
from .._support.json_files import read_sealed_json, write_sealed_json
from .._support.tables import rows_of
from ..errors import SeaLensError
from ..plots.saving import write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KIND = "finding"


@dataclass(frozen=True)
class Finding:
    """The answer of an analysis.

    Attributes:
        table: tidy: one row for each thing that was measured.
        paragraph: sentences that are computed from the table, a line for each thing that is said.
        figures: axes by the name of the figure.
        captions: what each figure shows.
        not_run: what could not be looked at, and why.
    """

    table: pd.DataFrame
    paragraph: str
    figures: Mapping[str, "Axes"] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    not_run: tuple[str, ...] = ()

    def write(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        """Write NAME.csv, the figures, and last of all NAME.json, which says that all of it is there."""
        folder.mkdir(parents=True, exist_ok=True)
        # What an interrupted run leaves behind must not pass for the finding that stood here before.
        (folder / f"{name}.json").unlink(missing_ok=True)
        write_atomically(folder / f"{name}.csv", self.table.to_csv(index=False))
        for figure, axes in self.figures.items():
            write_figure(folder / f"{name}_{figure}.png", axes)
        written = [f"{name}.csv", *(f"{name}_{figure}.png" for figure in self.figures)]
        content = {
            "sea_lens": _KIND,
            "files": {one: _digest(folder / one) for one in written},
            "settings": dict(settings),
            "paragraph": self.paragraph,
            "not_run": list(self.not_run),
            "figures": {f"{name}_{figure}.png": self.captions.get(figure, "") for figure in self.figures},
            "table": [{name: _json(value) for name, value in row.items()} for row in rows_of(self.table)],
        }
        write_sealed_json(folder / f"{name}.json", content)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _json(value: Any) -> Any:
    """A cell as JSON has it; what is missing, as a column that other rows have, is null."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True)
class Written:
    """A finding as it lies in a folder.

    Attributes:
        settings: it was made with.
        paragraph, not_run: as in `Finding`.
        figures: captions by the name of the file.
        files: digest of the CSV and of every figure.
        table: rows.
    """

    settings: Mapping[str, Any]
    paragraph: str
    not_run: list[str]
    figures: Mapping[str, str]
    files: Mapping[str, str]
    table: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path, name: str) -> "Written | None":
        """The finding of this name, None where there is none that is whole and as it was written."""
        path = folder / f"{name}.json"
        if not path.is_file():
            return None
        try:
            content = read_sealed_json(path, _KIND)
            found = cls(**{name: content[name] for name in cls.__dataclass_fields__})
        except (SeaLensError, KeyError):
            return None
        return found if all(_digest(folder / one) == digest for one, digest in found.files.items()) else None
