"""Figures of findings: changes of scores with their intervals and controls, and values along an axis."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .._support.tables import part, rows_of
from .axes import AFTER, BEFORE, COLOURS, LETTER, NEUTRAL, NORMAL, SMALL, broken, dress, legend, new_axes

# Panels in a row, so that a page can show them at their size.
MOST_PANELS = 3
# Ratio of two numbers along a logarithmic axis from which on there is room for both.
APART = 1.2


def changes(frame: pd.DataFrame, names: Sequence[str], title: str, unit: str) -> Axes:
    """Change of every score with its 95 % interval, a panel for each score, above the range of its control.

    Args:
        frame: columns name, score, difference, low, high, and with controls control_low, control_high and controls.
        names: rows from top to bottom.
        title: of the figure.
        unit: of the scores.

    Returns:
        The first panel; the others are in its figure.
    """
    scores = list(dict.fromkeys(frame["score"]))
    longest = max(len(name) for name in names)
    columns = min(len(scores), MOST_PANELS)
    rows = -(-len(scores) // columns)
    size = (1.2 + 0.085 * longest + 2.6 * columns, 0.7 + (0.8 + 0.36 * len(names)) * rows)
    figure, panels = plt.subplots(rows, columns, sharey=True, squeeze=False, figsize=size, layout="constrained")
    for ax in panels.flat[len(scores) :]:
        ax.remove()
    places = {name: place for place, name in enumerate(reversed(names))}
    n_controls = 0
    for ax, score in zip(panels.flat, scores, strict=False):
        for row in rows_of(part(frame, "score", [score])):
            place = places[row["name"]]
            if row.get("controls") and np.isfinite(row["control_low"]):
                n_controls = row["controls"]
                width = row["control_high"] - row["control_low"]
                # The edge shows a range of a single value too.
                shown = {"color": NEUTRAL, "edgecolor": NEUTRAL, "linewidth": 2}
                ax.barh(place, width, left=row["control_low"], height=0.62, zorder=1, **shown)
            if np.isfinite(row["difference"]):
                ends = [[max(row["difference"] - row["low"], 0)], [max(row["high"] - row["difference"], 0)]]
                ax.errorbar(row["difference"], place, xerr=ends, fmt="o", color=AFTER, capsize=3, zorder=3)
        # A range must not look cut off where it ends.
        ax.use_sticky_edges = False
        ax.axvline(0, color="black", linewidth=0.8, linestyle=":", zorder=2)
        dress(ax, f"change of the {unit}", "", score.replace("_", " "))
        # Few numbers, since panels are narrow.
        ax.xaxis.set_major_locator(MaxNLocator(4))
    panels[0, 0].set_yticks(list(places.values()), list(places))
    panels[0, 0].set_ylim(-0.6, len(names) - 0.4)
    beside = f"; grey: range of {n_controls} fits to shuffled demonstrations" if n_controls else ""
    told = f"{title}\n● change with its 95 % interval{beside}"
    figure.suptitle(broken(told, size[0]), fontsize=NORMAL)
    return panels[0, 0]


def along(
    frame: pd.DataFrame, x: str, xlabel: str, ylabel: str, title: str, *, log: bool = False, ax: Axes | None = None
) -> Axes:
    """A value with its interval along an axis, a line for each name, and the range of its control behind it.

    Args:
        frame: columns name, x, value, low, high, and with controls control_low and control_high.
        x: name of the column to draw along.
        xlabel, ylabel, title: of the figure.
        log: whether the axis is logarithmic; else its ticks are whole numbers, as layers are.
        ax: where to draw.
    """
    ax = new_axes(ax)
    for (name, rows), colour, marker in zip(frame.groupby("name", sort=False), COLOURS, "os^Dvp", strict=False):
        if "control_low" in rows and rows["control_low"].notna().any():
            ax.fill_between(rows[x], rows["control_low"], rows["control_high"], color=colour, alpha=0.15, linewidth=0)
        spread = np.maximum([rows["value"] - rows["low"], rows["high"] - rows["value"]], 0)
        ax.errorbar(rows[x], rows["value"], yerr=spread, color=colour, marker=marker, capsize=3, label=str(name))
    ax.axhline(0, color="black", linewidth=0.8, linestyle=":")
    if log:
        ax.set_xscale("log")
        ticks = sorted(set(frame[x]))
        # Of two that would stand on each other the larger is told.
        told = [one for one, after in zip(ticks, [*ticks[1:], np.inf], strict=True) if after / one >= APART]
        ax.set_xticks(told, [f"{tick:g}" for tick in told])
        ax.minorticks_off()
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(y=0.15)
    legend(ax)
    return dress(ax, xlabel, ylabel, title)


def correlations(table: pd.DataFrame, title: str, label: str) -> Axes:
    """Correlations as a map with their numbers.

    Args:
        table: square, with the same names as rows and columns.
        title: of the figure.
        label: what the numbers are.
    """
    longest = max(len(str(name)) for name in table.columns)
    side = 0.5 * len(table) + LETTER * longest
    figure, ax = plt.subplots(figsize=(side + 1.4, side + 0.6), layout="constrained")
    image = ax.imshow(table.to_numpy(), cmap="RdBu", vmin=-1, vmax=1)
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        shade = "white" if abs(value) > 0.6 else "black"
        ax.text(column, row, f"{value:+.2f}", ha="center", va="center", fontsize=SMALL, color=shade)
    ax.set_xticks(range(len(table)), list(table.columns), rotation=90)
    ax.set_yticks(range(len(table)), list(table.columns))
    bar = figure.colorbar(image, ax=ax, label=label, shrink=0.8)
    bar.ax.tick_params(labelsize=SMALL)
    return dress(ax, "", "", title, framed=True)


def clouds(
    points: Sequence[Sequence[Float[np.ndarray, "n 2"]]],
    rows: Sequence[str],
    columns: Sequence[str],
    labels: Sequence[str],
    title: str,
) -> Axes:
    """Points of several kinds in a grid of panels, such as activations of a layer before and after an edit.

    Args:
        points: for each row, one after another, for each column, all kinds in one array.
        rows, columns: names of the panels.
        labels: the kind of every point.
        title: of the figure.

    Returns:
        The first panel.
    """
    size = (0.6 + 2.5 * len(columns), 0.9 + 2.2 * len(rows))
    figure, panels = plt.subplots(len(rows), len(columns), squeeze=False, figsize=size, layout="constrained")
    kinds = list(dict.fromkeys(labels))
    of_kind = np.asarray(labels)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            ax = panels[i, j]
            for kind, colour, marker in zip(kinds, (BEFORE, AFTER, COLOURS[1]), "ox^", strict=False):
                chosen = points[i][j][of_kind == kind]
                ax.scatter(chosen[:, 0], chosen[:, 1], s=9, color=colour, marker=marker, linewidths=0.8, alpha=0.7)
            ax.set_xticks([])
            ax.set_yticks([])
            if i == 0:
                ax.set_title(column, fontsize=NORMAL)
            if j == 0:
                ax.set_ylabel(row)
    handles = [
        Line2D([], [], linestyle="", color=colour, marker=marker, label=kind)
        for kind, colour, marker in zip(kinds, (BEFORE, AFTER, COLOURS[1]), "ox^", strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(kinds), frameon=False, fontsize=SMALL)
    figure.suptitle(broken(title, size[0]), fontsize=NORMAL)
    return panels[0, 0]
