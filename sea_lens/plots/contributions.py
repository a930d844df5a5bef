"""Figures of what carries an edit's effect."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

from ..spectral.direction_terms import REST, SIDES
from .axes import BEFORE, DROP, KEEP, NEUTRAL, SMALL, dress, layer_colours, layer_handles, legend, new_axes

# A map of more cells than this, or of more in a row, is read by its colours alone.
MOST_NUMBERS, MOST_COLUMNS = 96, 12
# Inches of a cell with its number and of one without.
WIDE, NARROW = (0.62, 0.42), (0.2, 0.2)
# Names along an axis of a map, at most.
MOST_NAMES = 12
# Letters of a token from which names along an axis are turned.
LONG_TOKEN = 5
MARKERS = {"+": "^", "-": "v"}
TICKS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
# Where a number stands beside its point, in pixels, the first that is free; and how far from other numbers.
BESIDE = ((12, 0), (-12, 0), (12, 14), (-12, -14), (-12, 14), (12, -14), (26, 0), (-26, 0))
BESIDE_APART = 14
# Directions that are drawn with their intervals, and of these with their names.
DRAWN, NAMED = 20, 4


def layer_bars(frame: pd.DataFrame, effect: float, title: str, *, controls: int = 0, ax: Axes | None = None) -> Axes:
    """A bar for each edited layer, with its interval over contrasts and the range of its control.

    Args:
        frame: columns layer, value, low, high, and with controls control_low and control_high; in nats.
        effect: of the whole edit in nats, drawn as a line.
        title: of the figure.
        controls: how many control edits the range is of.
        ax: where to draw.
    """
    ax = new_axes(ax)
    # A range must not look cut off where it ends.
    ax.use_sticky_edges = False
    values = frame["value"].to_numpy()
    errors = np.abs(np.stack([values - frame["low"], frame["high"] - values]))
    ax.bar(frame["layer"], values, yerr=errors, color=[KEEP if v >= 0 else DROP for v in values], capsize=3)
    if controls:
        low, high = frame["control_low"].to_numpy(), frame["control_high"].to_numpy()
        label = f"range of {controls} control edits"
        ax.bar(frame["layer"], high - low, bottom=low, width=0.95, color=NEUTRAL, alpha=0.7, label=label, zorder=0.5)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.axhline(effect, color=BEFORE, linestyle="--", linewidth=1.2, label=f"whole edit {effect:+.2f}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Room for the legend above whatever is highest.
    ax.margins(y=0.25)
    legend(ax, loc="upper left", ncols=2)
    return dress(ax, "layer", "contribution to the effect, nats", title)


def position_map(
    values: Float[np.ndarray, "layers positions"],
    layers: Sequence[int],
    positions: Sequence[int],
    title: str,
    *,
    beyond: Bool[np.ndarray, "layers positions"] | None = None,
    controls: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Layer × position map of contributions in nats; arguments as in `head_map`."""
    ax = _map(ax, values, "nats", positions, layers, beyond)
    return dress(ax, "position (0: last token of the prompt)", "layer", _beside(title, beyond, controls), framed=True)


def token_map(
    values: Float[np.ndarray, "layers places"],
    layers: Sequence[int],
    tokens: Sequence[str],
    title: str,
    *,
    beyond: Bool[np.ndarray, "layers places"] | None = None,
    controls: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Layer × token map of what is added to log-probabilities, in nats; other arguments as in `head_map`."""
    ax = _map(ax, values, "nats", [token.strip() or repr(token) for token in tokens], layers, beyond)
    for text in ax.get_xticklabels():
        # A token may hold what a formula begins with.
        text.set_parse_math(False)
    if max(map(len, tokens)) > LONG_TOKEN:
        ax.tick_params(axis="x", rotation=60)
    return dress(ax, "token of the continuation", "layer", _beside(title, beyond, controls), framed=True)


def head_map(
    values: Float[np.ndarray, "n_layers n_heads"],
    unit: str,
    title: str,
    *,
    beyond: Bool[np.ndarray, "n_layers n_heads"] | None = None,
    controls: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Layer × head map of contributions.

    Args:
        values: in the unit.
        unit: of the values.
        title: of the figure.
        beyond: which values lie outside the range of their control edits; these cells have a frame.
        controls: how many control edits there are.
        ax: where to draw.
    """
    n_layers, n_heads = values.shape
    ax = _map(ax, values, unit, range(n_heads), range(n_layers), beyond)
    return dress(ax, "head", "layer", _beside(title, beyond, controls), framed=True)


def interaction_map(
    values: Float[np.ndarray, "players players"],
    names: Sequence[str],
    method: str,
    effect: float,
    *,
    beyond: Bool[np.ndarray, "players players"] | None = None,
    controls: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Map of what pairs do beyond their two, with the players' own values on the diagonal.

    Args:
        values: in nats.
        names: of the players.
        method: how they were measured.
        effect: of the whole edit, in nats.
        beyond: which values lie outside the range of their control edits; these cells have a frame.
        controls: how many control edits there are.
        ax: where to draw.
    """
    ax = _map(ax, values, "nats", names, names, beyond)
    title = f"Alone (diagonal), and what pairs do beyond that ({method.replace('_', ' ')}): effect {effect:+.3f} nats"
    # A pair stands on both sides of the diagonal, and counts once.
    once = None if beyond is None else beyond[np.triu_indices(len(names))]
    return dress(ax, "layer, node or edit", "layer, node or edit", _beside(title, once, controls), framed=True)


def _beside(title: str, beyond: Bool[np.ndarray, "*parts"] | None, controls: int) -> str:
    if beyond is None:
        return title
    # Each of controls + 1 numbers is as likely as any other to be the lowest or the highest, where labels say nothing.
    chance = beyond.size * 2 / (controls + 1)
    told = f"outside the range of {controls} control edits, {int(beyond.sum())} of {beyond.size}"
    return f"{title}\nframed: {told} (by chance about {chance:.0f})"


def _map(
    ax: Axes | None,
    values: Float[np.ndarray, "rows columns"],
    unit: str,
    columns: Sequence[int | str],
    rows: Sequence[int | str],
    beyond: Bool[np.ndarray, "rows columns"] | None,
) -> Axes:
    """A diverging colour map centred on zero, with its numbers where they are few."""
    numbered = values.size <= MOST_NUMBERS and len(columns) <= MOST_COLUMNS
    width, height = WIDE if numbered else NARROW
    ax = new_axes(ax, (max(1.9 + width * len(columns), 4.6), max(1.6 + height * len(rows), 2.4)))
    bound = float(np.abs(values).max()) or 1.0
    image = ax.imshow(values, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
    decimals = int(np.clip(1 - np.floor(np.log10(bound)), 1, 4))
    for (row, column), value in np.ndenumerate(values):
        if numbered:
            shade = "white" if abs(value) > 0.6 * bound else "black"
            ax.text(column, row, f"{value:+.{decimals}f}", ha="center", va="center", fontsize=SMALL, color=shade)
        if beyond is not None and beyond[row, column]:
            ax.add_patch(Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, linewidth=1.4))
    for axis, names in ((ax.xaxis, columns), (ax.yaxis, rows)):
        step = -(-len(names) // MOST_NAMES)
        axis.set_ticks(range(0, len(names), step), [str(name) for name in names[::step]])
    figure = ax.get_figure()
    assert figure is not None
    bar = figure.colorbar(image, ax=ax, label=unit)
    bar.ax.tick_params(labelsize=SMALL)
    return ax


def direction_spectrum(
    frame: pd.DataFrame, names: Sequence[str], effect: float, *, controls: int = 0, ax: Axes | None = None
) -> Axes:
    """Share of each direction against its place in the spectrum, or its eigenvalue (docs/method.md 8.1 and 8.5).

    The 20 largest shares are drawn with their intervals; the 4 largest have numbers, and names in the legend.

    Args:
        frame: columns layer, head, side, index, value, low, high, for net directions eigenvalue, and with controls
            control_low and control_high; in nats.
        names: of the rows.
        effect: of the whole edit, in nats.
        controls: how many control edits the range is of.
        ax: where to draw.
    """
    ax = new_axes(ax, (8.0, 4.2))
    net = "eigenvalue" in frame
    frame = frame.assign(name=list(names))
    ranked = frame[frame["side"].isin(list(MARKERS))].assign(place=lambda rows: rows["index"] + 1)
    ranked = ranked.assign(at=ranked["eigenvalue"] if net else ranked["place"])
    colours = layer_colours(sorted(set(frame["layer"])))
    if controls and net:
        ax.vlines(ranked["at"], ranked["control_low"], ranked["control_high"], color=NEUTRAL, alpha=0.7, linewidth=4)
    elif controls:
        spread = ranked.groupby("at").agg({"control_low": "min", "control_high": "max"})
        ax.fill_between(spread.index, spread["control_low"], spread["control_high"], color=NEUTRAL, alpha=0.5)
    sides = SIDES["net" if net else "sides"]
    for side, marker in MARKERS.items():
        rows = ranked[ranked["side"] == side]
        ax.scatter(rows["at"], rows["value"], c=[colours[i] for i in rows["layer"]], marker=marker, s=26, zorder=3)
    handles: list[Artist] = [
        Line2D([], [], color="black", marker=marker, linestyle="", label=sides[side])
        for side, marker in MARKERS.items()
    ]
    handles += layer_handles(colours)
    if controls:
        handles.append(Patch(color=NEUTRAL, label=f"range of {controls} control edits"))
    largest = ranked.loc[ranked["value"].abs().sort_values(ascending=False).index[:DRAWN]]
    numbered: list[tuple[float, float]] = []
    for rank, row in enumerate(largest.to_dict(orient="records"), start=1):
        ax.vlines(row["at"], row["low"], row["high"], color=colours[row["layer"]], linewidth=0.8)
        if rank <= NAMED:
            numbered.append((row["at"], row["value"]))
            handles.append(Line2D([], [], linestyle="", label=f"{rank}: {row['name']}"))
    ax.axhline(0, color="black", linewidth=0.8)
    if net:
        ax.set_xlim(-1.05, 1.05)
    elif len(ranked):
        ax.set_xscale("log")
        ax.set_xticks([tick for tick in TICKS if tick <= ranked["place"].max()])
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
    _number(ax, numbered)
    sums = {name: frame.loc[frame["side"] == side, "value"] for side, name in {**sides, **REST}.items()}
    parts = ", ".join(f"{name} {values.sum():+.3f}" for name, values in sums.items() if len(values))
    legend(ax, handles, loc="center left", bbox_to_anchor=(1, 0.5))
    for text in ax.get_legend().get_texts():  # type: ignore[union-attr]
        # A token may hold what a formula begins with.
        text.set_parse_math(False)
    along = "eigenvalue (1: kept alone, -1: dropped alone, 0: both)" if net else "place in the spectrum (1: largest)"
    return dress(
        ax,
        f"{along}; a name tells the token that is raised most",
        "share of the effect, nats",
        f"{'Net' if net else 'Singular'} directions: effect {effect:+.3f} nats\n{parts}",
    )


def _number(ax: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Numbers beside points, each where none of the others stands."""
    taken: list[np.ndarray] = []
    for number, point in enumerate(points, start=1):
        at = ax.transData.transform(point)
        free = [offset for offset in BESIDE if all(np.abs(at + offset - other).max() > BESIDE_APART for other in taken)]
        offset = (free or [BESIDE[0]])[0]
        taken.append(at + offset)
        written = {"xytext": offset, "textcoords": "offset pixels", "fontsize": SMALL, "fontweight": "bold"}
        ax.annotate(str(number), point, **written, ha="center", va="center")


def resampled_values(
    frame: pd.DataFrame, fits: Float[np.ndarray, "fits rows"], title: str, unit: str, ax: Axes | None = None
) -> Axes:
    """The effect and its largest contributions with their intervals, a tick for each resampled fit.

    Args:
        frame: columns part, value, low and high; the first row is the whole effect.
        fits: the value of every row under each fit.
        title: of the figure.
        unit: of the values.
        ax: where to draw.
    """
    order = [0, *(frame["value"].iloc[1:].abs().sort_values(ascending=False).index[:DRAWN])]
    ax = new_axes(ax, (6.5, 1.2 + 0.3 * len(order)))
    shown, places = frame.iloc[order], np.arange(len(order))[::-1]
    for place, row in zip(places, order, strict=True):
        ax.plot(fits[:, row], np.full(len(fits), place), "|", color=BEFORE, markersize=9, zorder=1)
    spread = np.stack([shown["value"] - shown["low"], shown["high"] - shown["value"]])
    ax.errorbar(shown["value"], places, xerr=spread, fmt="o", color=KEEP, capsize=3, zorder=2)
    ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
    ax.set_yticks(places, list(shown["part"]))
    ax.set_ylim(-0.6, len(order) - 0.4)
    return dress(ax, f"value, {unit}; ticks: single fits; intervals over contrasts and demonstrations", "part", title)
