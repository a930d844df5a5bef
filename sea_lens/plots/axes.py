"""What all figures share."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

BEFORE, AFTER, NEUTRAL = "#8c8c8c", "#1b6ca8", "#c9c9c9"
KEEP, DROP = "#1b6ca8", "#c44536"
# Told apart by people who do not tell red from green (Wong 2011, doi:10.1038/nmeth.1618).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def new_axes(ax: Axes | None, size: tuple[float, float] = (6.0, 3.6)) -> Axes:
    """The given axes, or the axes of a new figure."""
    return ax if ax is not None else plt.subplots(figsize=size, layout="constrained")[1]
