"""Figures as files."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from .._support.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
