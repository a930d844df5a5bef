"""Figures of an edit's circuit: how few parts suffice, and by which ways they are reached."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .axes import BEFORE, COLOURS, DROP, KEEP, NEUTRAL, dress, legend, new_axes

# Nodes up to which the axis of a recovery curve is linear.
MOST_LINEAR = 60
# Edges that are drawn.
DRAWN = 20
# By which way a head meets a direction.
WAYS = dict(zip(("write", "q", "k", "v"), (COLOURS[2], COLOURS[0], COLOURS[5], COLOURS[1]), strict=True))


def recovery_curve(
    frame: pd.DataFrame,
    effect: float,
    ranked_by: str,
    *,
    direct: bool = False,
    controls: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Effect that is kept with k nodes alone and lost without them, against k.

    Args:
        frame: columns k, kept, low, high, lost, lost_low, lost_high, and where there are any random_low, random_high,
            control_low and control_high; in nats.
        effect: of the whole edit, in nats.
        ranked_by: how the nodes were ranked.
        direct: whether the edit itself is kept beside them.
        controls: how many control edits' sets the range is of.
        ax: where to draw.
    """
    ax = new_axes(ax, (7.5, 3.8))
    ranges = {
        "random": ("random sets", NEUTRAL, 0.8),
        "control": (f"sets of {controls} control edits", COLOURS[1], 0.3),
    }
    for name, (label, colour, alpha) in ranges.items():
        if f"{name}_low" in frame:
            ends = frame[f"{name}_low"], frame[f"{name}_high"]
            ax.fill_between(
                frame["k"], *ends, color=colour, alpha=alpha, linewidth=0, label=f"kept, {label}", zorder=0.5
            )
    for value, low, high, colour, marker, label in (
        ("kept", "low", "high", KEEP, "o", "kept with the edit and these" if direct else "kept with these alone"),
        ("lost", "lost_low", "lost_high", DROP, "s", "lost without these"),
    ):
        spread = np.nan_to_num(np.maximum([frame[value] - frame[low], frame[high] - frame[value]], 0))
        ax.errorbar(
            frame["k"], frame[value], yerr=spread, color=colour, marker=marker, markersize=4, capsize=2, label=label
        )
    ax.axhline(effect, color=BEFORE, linestyle="--", linewidth=1.2, label=f"whole edit {effect:+.2f}")
    ax.axhline(0, color="black", linewidth=0.8)
    if frame["k"].max() > MOST_LINEAR:
        ax.set_xscale("symlog", linthresh=10)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(ax, loc="center left", bbox_to_anchor=(1, 0.5))
    title = f"How few suffice: heads and MLPs, ranked by {ranked_by}"
    return dress(ax, "heads and MLPs together", "effect, nats", title)


def truncation_curve(frame: pd.DataFrame, effect: float, *, controls: int = 0, ax: Axes | None = None) -> Axes:
    """Effect of the edit of its k first net planes, against k, beside the share of the displacement that they make.

    Args:
        frame: columns k, effect, low, high, displacement, and with controls control_low and control_high; in nats, and
            as a share.
        effect: of the whole edit, in nats.
        controls: how many control edits the range is of.
        ax: where to draw.
    """
    ax = new_axes(ax, (7.5, 3.8))
    if controls:
        label = f"effect, {controls} control edits"
        ends = frame["control_low"], frame["control_high"]
        ax.fill_between(frame["k"], *ends, color=NEUTRAL, alpha=0.8, linewidth=0, label=label, zorder=0.5)
    spread = np.nan_to_num(np.maximum([frame["effect"] - frame["low"], frame["high"] - frame["effect"]], 0))
    ax.errorbar(
        frame["k"], frame["effect"], yerr=spread, color=KEEP, marker="o", markersize=4, capsize=2, label="effect"
    )
    ax.axhline(effect, color=BEFORE, linestyle="--", linewidth=1.2, label=f"whole edit {effect:+.2f}")
    ax.axhline(0, color="black", linewidth=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    share = ax.twinx()
    (line,) = share.plot(
        frame["k"],
        frame["displacement"],
        color=COLOURS[1],
        marker="s",
        markersize=4,
        linestyle=":",
        label="displacement",
    )
    share.set_ylim(0, 1.05)
    dress(share, "", "share of the displacement", "").spines["right"].set_visible(True)
    handles = [*ax.get_legend_handles_labels()[0], line]
    legend(ax, handles, loc="center left", bbox_to_anchor=(1.16, 0.5))
    return dress(ax, "net planes of each layer", "effect, nats", "How few directions: edits of the first net planes")


def edge_bars(
    frame: pd.DataFrame,
    names: Sequence[str],
    effect: float,
    method: str,
    *,
    controls: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """The largest edges from edited layers into what reads them, with intervals and the range of their control.

    Args:
        frame: columns layer, value, low, high, and with controls control_low and control_high; in nats.
        names: of the rows.
        effect: of the whole edit, in nats.
        method: how the edges were measured.
        controls: how many control edits the range is of.
        ax: where to draw.
    """
    shown = frame.assign(name=list(names)).query("layer != 'all'")
    shown = shown.loc[shown["value"].abs().sort_values(ascending=False).index[:DRAWN]]
    ax = _bars(shown, list(shown["name"]), controls, ax)
    title = f"Ways of the edit into heads, MLPs and logits ({method}): effect {effect:+.3f} nats"
    return dress(ax, "effect that passes there, nats", "", title)


def frozen_bars(
    frame: pd.DataFrame, names: Sequence[str], effect: float, *, controls: int = 0, ax: Axes | None = None
) -> Axes:
    """What of an effect is lost with parts of the model held as they were.

    Args:
        frame: columns value, low, high, and with controls control_low and control_high; in nats.
        names: of the parts.
        effect: of the whole edit, in nats.
        controls: how many control edits the range is of.
        ax: where to draw.
    """
    ax = _bars(frame, names, controls, ax)
    ax.axvline(effect, color=BEFORE, linestyle="--", linewidth=1.2)
    title = f"What is lost with a part held as it was: of {effect:+.3f} nats (dashed)"
    return dress(ax, "effect that is lost, nats", "", title)


def virtual_bars(frame: pd.DataFrame, *, controls: int = 0, ax: Axes | None = None) -> Axes:
    """The heads that write and read directions most, in units of a random direction, and the range of their control.

    Args:
        frame: columns layer, head, side, index, to_layer, to, way, ratio, and with controls control_low and
            control_high.
        controls: how many control edits the range is of.
        ax: where to draw.
    """
    shown = frame.loc[frame["ratio"].sort_values(ascending=False, kind="stable").index[:DRAWN]]
    names = []
    for row in shown.to_dict(orient="records"):
        head = "" if pd.isna(row["head"]) else f" head {row['head']}"
        by = "writes" if row["way"] == "write" else f"by {row['way']}"
        side = "raised" if row["side"] == "+" else "lowered"
        names.append(f"head {row['to_layer']}.{row['to']} {by}: layer {row['layer']}{head} {side} {row['index']}")
    ax = _bars(shown.assign(value=shown["ratio"]), names, controls, ax, [WAYS[way] for way in shown["way"]])
    ax.axvline(1, color=BEFORE, linestyle="--", linewidth=1.2)
    handles = [Patch(color=WAYS[way], label=way) for way in WAYS if way in set(shown["way"])]
    title = "Heads that write and read directions, by weights"
    if controls:
        handles.append(Patch(color=NEUTRAL, label=f"range of {controls} control edits"))
        beyond = int((frame["ratio"] > frame["control_high"]).sum())
        chance = len(frame) / (controls + 1)
        title += f"\n{beyond} of {len(frame)} beyond all {controls} control edits (by chance about {chance:.0f})"
    legend(ax, handles, loc="center left", bbox_to_anchor=(1, 0.5))
    return dress(ax, "strength over that of a random direction (dashed)", "", title)


def _bars(
    frame: pd.DataFrame, names: Sequence[str], controls: int, ax: Axes | None, colours: Sequence[str] = ()
) -> Axes:
    """Horizontal bars, the first on top, with intervals where there are any, and the range of the controls behind them.

    Colours are those of their signs where none are given, and a legend tells of the controls then.
    """
    ax = new_axes(ax, (7.0 if not colours else 8.5, 1.2 + 0.27 * len(frame)))
    ax.use_sticky_edges = False
    places = np.arange(len(frame))[::-1]
    values = frame["value"].to_numpy()
    if controls:
        low, high = frame["control_low"].to_numpy(), frame["control_high"].to_numpy()
        label = f"range of {controls} control edits"
        ax.barh(places, high - low, left=low, height=0.9, color=NEUTRAL, alpha=0.7, label=label, zorder=0.5)
    ends: dict[str, Any] = {}
    if "low" in frame:
        spread = np.nan_to_num(np.maximum([frame["value"] - frame["low"], frame["high"] - frame["value"]], 0))
        ends = {"xerr": spread, "error_kw": {"capsize": 2, "linewidth": 0.8}}
    by_sign = [KEEP if value >= 0 else DROP for value in values]
    ax.barh(places, values, height=0.5, color=colours or by_sign, **ends)
    ax.set_yticks(places, list(names))
    ax.axvline(0, color="black", linewidth=0.8)
    if controls and not colours:
        legend(ax, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
