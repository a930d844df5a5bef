"""Figures of what carries an edit's effect."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

from .axes import BEFORE, DROP, KEEP, NEUTRAL, new_axes

# A map of more cells than this is read by its colours alone.
MOST_NUMBERS = 96
SIDES = {"+": "^", "-": "v"}
TICKS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


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
    ax.bar(frame["layer"], values, yerr=errors, color=[KEEP if v >= 0 else DROP for v in values], capsize=4)
    if controls:
        low, high = frame["control_low"].to_numpy(), frame["control_high"].to_numpy()
        label = f"range of {controls} control edits"
        ax.bar(frame["layer"], high - low, bottom=low, width=0.95, color=NEUTRAL, alpha=0.7, label=label, zorder=0.5)
        ax.legend(frameon=False, fontsize=8, loc="upper left")
    ax.axhline(0, color="black", linewidth=0.8)
    ax.axhline(effect, color=BEFORE, linestyle="--", linewidth=1.2)
    ax.annotate(
        f"whole edit {effect:+.2f}",
        (1.0, effect),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        color=BEFORE,
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("layer")
    ax.set_ylabel("contribution to the effect, nats")
    ax.set_title(title, fontsize=10)
    ax.margins(y=0.15)
    return ax


def position_map(
    values: Float[np.ndarray, "layers positions"],
    layers: Sequence[int],
    positions: Sequence[int],
    title: str,
    ax: Axes | None = None,
) -> Axes:
    """Layer × position map of contributions in nats."""
    ax = new_axes(ax, (2.2 + 0.5 * min(len(positions), 24), 1.6 + 0.45 * min(len(layers), 24)))
    _map(ax, values, "nats", positions, layers)
    ax.set_xlabel("position (0: last token of the prompt)")
    ax.set_ylabel("layer")
    ax.set_title(title, fontsize=10)
    return ax


def head_map(values: Float[np.ndarray, "n_layers n_heads"], unit: str, title: str, ax: Axes | None = None) -> Axes:
    """Layer × head map of contributions in the given unit."""
    n_layers, n_heads = values.shape
    ax = new_axes(ax, (1.9 + 0.55 * min(n_heads, 24), 1.8 + 0.5 * min(n_layers, 24)))
    _map(ax, values, unit, range(n_heads), range(n_layers))
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    ax.set_title(title, fontsize=9)
    return ax


def _map(
    ax: Axes, values: Float[np.ndarray, "rows columns"], unit: str, columns: Sequence[int], rows: Sequence[int]
) -> None:
    """A diverging colour map centred on zero, with its numbers where they are few."""
    bound = float(np.abs(values).max()) or 1.0
    image = ax.imshow(values, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
    decimals = int(np.clip(1 - np.floor(np.log10(bound)), 1, 4))
    if values.size <= MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(values):
            shade = "white" if abs(value) > 0.6 * bound else "black"
            ax.text(column, row, f"{value:+.{decimals}f}", ha="center", va="center", fontsize=7, color=shade)
    for axis, names, most in ((ax.xaxis, columns, 16), (ax.yaxis, rows, 16)):
        step = -(-len(names) // most)
        axis.set_ticks(range(0, len(names), step), [str(name) for name in names[::step]])
    figure = ax.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=ax, label=unit)


def direction_spectrum(
    frame: pd.DataFrame, names: Sequence[str], effect: float, *, controls: int = 0, ax: Axes | None = None
) -> Axes:
    """Share of each singular direction against its place in the spectrum (docs/method.md 8.1).

    The 20 largest shares are drawn with their intervals, the 4 largest with their names.

    Args:
        frame: columns layer, head, side, index, value, low, high, and with controls control_low and control_high; in
            nats.
        names: what each row of the frame stands for, empty where that is not known.
        effect: of the whole edit, in nats.
        controls: how many control edits the range is of.
        ax: where to draw.
    """
    ax = new_axes(ax, (7.5, 4.4))
    frame = frame.assign(name=list(names))
    ranked = frame[frame["side"].isin(list(SIDES))].assign(place=lambda rows: rows["index"] + 1)
    layers = sorted(set(frame["layer"]))
    colours = dict(zip(layers, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(layers))), strict=True))
    if controls:
        spread = ranked.groupby("place").agg({"control_low": "min", "control_high": "max"})
        ax.fill_between(spread.index, spread["control_low"], spread["control_high"], color=NEUTRAL, alpha=0.5)
    for side, marker in SIDES.items():
        rows = ranked[ranked["side"] == side]
        ax.scatter(rows["place"], rows["value"], c=[colours[i] for i in rows["layer"]], marker=marker, s=26, zorder=3)
    largest = ranked.loc[ranked["value"].abs().sort_values(ascending=False).index[:20]]
    for rank, row in enumerate(largest.to_dict(orient="records")):
        ax.vlines(row["place"], row["low"], row["high"], color=colours[row["layer"]], linewidth=0.8)
        if rank < 4:
            head = "" if pd.isna(row["head"]) else f" head {row['head']}"
            name = f"layer {row['layer']}{head} U{row['side']} {row['name']}"
            offset = (6, 5 if rank % 2 == 0 else -11)
            ax.annotate(
                name,
                (row["place"], row["value"]),
                xytext=offset,
                textcoords="offset points",
                fontsize=8,
                parse_math=False,
            )
    ax.axhline(0, color="black", linewidth=0.8)
    if len(ranked):
        ax.set_xscale("log")
        ax.set_xticks([tick for tick in TICKS if tick <= ranked["place"].max()])
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("place in the spectrum (1: largest singular value); a name tells the token raised most")
    ax.set_ylabel("share of the effect, nats")
    parts_of = {"+": "U+", "-": "U-", "norm": "rescaling", "centre": "centre"}
    sums = {name: frame.loc[frame["side"] == side, "value"] for side, name in parts_of.items()}
    parts = ", ".join(f"{name} {values.sum():+.3f}" for name, values in sums.items() if len(values))
    ax.set_title(f"Singular directions: effect {effect:+.3f} nats = {parts}", fontsize=10)
    handles = [Line2D([], [], color="black", marker=m, linestyle="", label=f"U{side}") for side, m in SIDES.items()]
    shown = layers if len(layers) <= 12 else [layers[0], layers[len(layers) // 2], layers[-1]]
    handles += [Line2D([], [], color=colours[i], marker="o", linestyle="", label=f"layer {i}") for i in shown]
    if controls:
        handles.append(Line2D([], [], color=NEUTRAL, linewidth=6, label=f"{controls} control edits"))
    ax.legend(handles=handles, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


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
    order = [0, *(frame["value"].iloc[1:].abs().sort_values(ascending=False).index[:20])]
    ax = new_axes(ax, (6.5, 1.2 + 0.3 * len(order)))
    shown, places = frame.iloc[order], np.arange(len(order))[::-1]
    for place, row in zip(places, order, strict=True):
        ax.plot(fits[:, row], np.full(len(fits), place), "|", color=BEFORE, markersize=9, zorder=1)
    spread = np.stack([shown["value"] - shown["low"], shown["high"] - shown["value"]])
    ax.errorbar(shown["value"], places, xerr=spread, fmt="o", color=KEEP, capsize=3, zorder=2)
    ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
    ax.set_yticks(places, list(shown["part"]))
    ax.set_ylabel("part")
    ax.set_xlabel(f"value, {unit}; intervals over contrasts and demonstrations")
    ax.set_title(title, fontsize=10)
    return ax
