"""The files that commands write: folders, figures and Markdown tables."""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._support.files import write_atomically
from ..errors import FileError
from ..spectral.edit import SpectralEdit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def output_folder(path: str | os.PathLike[str]) -> Path:
    """The folder to write to, made if it is missing.

    Raises:
        FileError: it is a file, or cannot be made or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot write to {path}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise FileError(f"cannot write to {path}: permission denied")
    return folder


def write_figure(path: Path, axes: "Axes") -> None:
    """The figure of some axes as PNG, whole or not at all; the figure is closed."""
    # Imported here, since pyplot takes half as long to import as torch.
    import matplotlib.pyplot as plt

    figure = axes.get_figure(root=True)
    assert figure is not None
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    plt.close(figure)
    write_atomically(path, buffer.getvalue())


def spectra_figure(edit: SpectralEdit) -> "Axes":
    """The spectra of an edit's layers (docs/method.md 2.4); at site `z` the means over heads."""
    from ..plots.edits import spectra

    power = float(edit.options["spectrum_power"])
    sides = {
        layer: ((one.keep_values, one.keep_rank), (one.drop_values, one.drop_rank))
        for layer, one in sorted(edit.subspaces.items())
    }
    energies = {layer: [values.mean(0).numpy() ** power for values, _ in both] for layer, both in sides.items()}
    ranks = {layer: [rank.double().mean().item() for _, rank in both] for layer, both in sides.items()}
    return spectra(energies, ranks)


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
