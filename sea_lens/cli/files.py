"""The files that commands write: folders and Markdown tables."""

import atexit
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .._support.files import check_writable
from .._support.processes import is_first
from .._support.regular_files import why
from ..errors import FileError
from ..spectral.edit import SpectralEdit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# What commands write into a folder, beside figures.
RESULTS, REPORT = "results.json", "report.md"

Inputs: TypeAlias = Mapping[str, str | os.PathLike[str] | None]
"""Files and folders that a command reads, by option; what is no path of this machine is passed over."""


def output_folder(path: str | os.PathLike[str], inputs: Inputs | None = None) -> Path:
    """The folder to write to, made if it is missing; what was made goes again at the end if nothing was written.

    Raises:
        FileError: it is a file, cannot be made or written to, or a file that would be written is one of the inputs, a
            link or a device.
    """
    folder = Path(path)
    try:
        # The outermost first, so that the innermost is the first to go.
        for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
            missing.mkdir(exist_ok=True)
            if is_first():
                atexit.register(_remove_empty, missing.absolute())
        figures = [entry for entry in folder.iterdir() if entry.suffix == ".png"]
    except (OSError, ValueError) as error:
        raise FileError(f"cannot write to {path}: {why(error)}") from error
    for target in (folder / RESULTS, folder / REPORT, *figures):
        check_output_file(target, inputs)
    return folder


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def check_output_file(path: Path, inputs: Inputs | None = None) -> None:
    """Refuse an output file that could not be written or must not be, before any work for it is done.

    Raises:
        FileError: it is a folder, a link or a device; its folder is missing or cannot be written to; or it is, by
            whatever name, one of the inputs or lies in one of them.
    """
    try:
        if path.is_dir():
            raise FileError(f"--out {path} is a folder: expected a file")
        if not path.parent.is_dir():
            raise FileError(f"--out {path}: no such folder {path.parent}")
        check_writable(path)
        for option, given in (inputs or {}).items():
            if given is not None and path.exists() and Path(given).exists() and _is_in(path, Path(given)):
                raise FileError(f"--out {path} is what {option} {given} reads: expected another file")
    except (OSError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"--out {path}: {why(error)}") from error


def _is_in(path: Path, given: Path) -> bool:
    """Whether a file is another, through links of any kind, or lies in a folder."""
    if given.is_dir():
        return path.resolve().is_relative_to(given.resolve())
    return path.samefile(given)


def spectra_figure(edit: SpectralEdit) -> "Axes":
    """The spectra of an edit's layers (docs/method.md 2.4); at site `z` the means over heads."""
    from ..plots.edits import spectra

    power = float(edit.options["spectrum_power"])
    sides = {
        layer: tuple(zip(one.spectra, (one.keep_rank, one.drop_rank), strict=True))
        for layer, one in sorted(edit.subspaces.items())
    }
    left = {layer: [one.left(power).mean(0).numpy() for one, _ in both] for layer, both in sides.items()}
    ranks = {layer: [rank.double().mean().item() for _, rank in both] for layer, both in sides.items()}
    return spectra(left, ranks)


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table; floats with three decimals, None as nothing."""

    def cell(value: Any) -> str:
        if value is None:
            return ""
        text = f"{value:.3f}" if isinstance(value, float) else str(value)
        # Tokens can hold what would tear a table apart.
        return text.replace("|", "\\|").replace("\n", "\\n")

    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([cell(row[name]) for name in head] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
