"""What all figures share: colours, sizes, and how axes are dressed."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

BEFORE, AFTER, NEUTRAL = "#6e6e6e", "#1b6ca8", "#c9c9c9"
KEEP, DROP = "#1b6ca8", "#c44536"
# Told apart by people who do not tell red from green (Wong 2011, doi:10.1038/nmeth.1618).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
# Points: nothing in a figure is smaller than the first.
SMALL, NORMAL = 9, 10
# Inches that a letter of NORMAL size takes, on average.
LETTER = 0.078
# More layers than this are named by some of them.
MOST_LAYERS = 6


def new_axes(ax: Axes | None, size: tuple[float, float] = (6.0, 3.6)) -> Axes:
    """The given axes, or the axes of a new figure."""
    return ax if ax is not None else plt.subplots(figsize=size, layout="constrained")[1]


def dress(ax: Axes, xlabel: str, ylabel: str, title: str, *, framed: bool = False) -> Axes:
    """Name the axes and the figure, in the sizes of all figures; a title is broken where the figure ends."""
    ax.set_xlabel(wrapped(xlabel, ax), fontsize=NORMAL)
    ax.set_ylabel(ylabel, fontsize=NORMAL)
    ax.set_title(wrapped(title, ax), fontsize=NORMAL)
    ax.tick_params(labelsize=SMALL)
    if not framed:
        ax.spines[["top", "right"]].set_visible(False)
    return ax


def wrapped(text: str, ax: Axes) -> str:
    """A text in lines that are no longer than its axes are wide, with what stands beside them."""
    figure, place = ax.get_figure(root=True), ax.get_subplotspec()
    assert figure is not None
    # A colour bar has taken its part of the axes, not of their place among others.
    box = ax.get_position() if place is None else place.get_position(figure)
    return broken(text, figure.get_size_inches()[0] * max(box.width, 0.5))


def broken(text: str, inches: float) -> str:
    """A text in lines of at most so many inches, about equally long; its own line ends stay."""
    width = max(20, int(inches / LETTER))
    return "\n".join("\n".join(_even(line, width)) for line in text.split("\n"))


def _even(line: str, width: int) -> list[str]:
    """The narrowest lines that are no more than those of the width, so that no word is left alone on the last."""
    fewest, longest = len(textwrap.wrap(line, width)), max(map(len, line.split()), default=1)
    tried = (textwrap.wrap(line, most) for most in range(min(longest, width), width + 1))
    return next(lines for lines in tried if len(lines) <= fewest)


def legend(ax: Axes, handles: Sequence[Any] | None = None, **placed: Any) -> None:
    """A legend in the style of all figures, where there is something to name."""
    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    if handles:
        ax.legend(handles=handles, frameon=False, fontsize=SMALL, **{"loc": "best", **placed})


def layer_colours(layers: Sequence[int]) -> dict[int, Any]:
    """A colour for each layer, darker for lower ones."""
    return dict(zip(layers, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(layers))), strict=True))


def layer_handles(colours: dict[int, Any], marker: str = "o") -> list[Line2D]:
    """What a legend has of layers: all of few, the first, the last and some between of many."""
    layers = list(colours)
    if len(layers) > MOST_LAYERS:
        layers = [layers[place] for place in np.linspace(0, len(layers) - 1, 5).round().astype(int)]
    return [Line2D([], [], color=colours[i], marker=marker, linestyle="", label=f"layer {i}") for i in layers]
