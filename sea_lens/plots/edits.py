"""Figures of an edit and its effect."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .._support.statistics import Interval
from .axes import AFTER, BEFORE, KEEP, NEUTRAL, SMALL, dress, layer_colours, layer_handles, legend, new_axes


def before_after(
    before: Float[np.ndarray, " items"],
    after: Float[np.ndarray, " items"],
    interval: Interval,
    controls: Float[np.ndarray, " draws"] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Distribution of the contrast over items, unedited and edited, with the interval of the difference.

    Args:
        before, after: the contrast of each item, in nats.
        interval: of the effect, the mean difference.
        controls: effects of control edits; where they bring the mean is a grey range.
        ax: where to draw.
    """
    ax = new_axes(ax, (7.5, 3.4))
    items = np.concatenate([before, after])
    bins = np.linspace(items.min(), items.max(), 31) if np.ptp(items) > 0 else 10
    for values, colour, label in ((before, BEFORE, "unedited"), (after, AFTER, "edited")):
        ax.hist(values, bins=bins, color=colour, alpha=0.55, label=f"{label}, mean {values.mean():+.2f}")
        ax.axvline(values.mean(), color=colour, linewidth=2)
    if controls is not None and len(controls):
        label = f"means of {len(controls)} control edits"
        ends = before.mean() + controls.min(), before.mean() + controls.max()
        ax.axvspan(*ends, color=NEUTRAL, alpha=0.75, label=label, zorder=2.5)
    ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
    legend(ax, loc="center left", bbox_to_anchor=(1, 0.5))
    label = "log p(target) − log p(foil), nats; right of 0 the target is preferred"
    return dress(ax, label, "contrasts", f"Effect of the edit: {interval} nats")


def spectra(
    left: Mapping[int, Sequence[Float[np.ndarray, " m"]]],
    ranks: Mapping[int, Sequence[float]],
    ax: Axes | None = None,
) -> Axes:
    """Spectral energy left after k directions, for each layer, with the chosen ranks marked (docs/method.md 2.4).

    Args:
        left: for each layer, the share of the energy of the positive and of the negative cross-covariance that lies
            beyond each direction; of the leading directions, or of all.
        ranks: for each layer, the positive and the negative rank; a mean over heads need not be whole.
        ax: where to draw.
    """
    ax = new_axes(ax)
    colours = layer_colours(list(left))
    for layer, colour in colours.items():
        for beyond, rank, line, marker in zip(left[layer], ranks[layer], ("-", "--"), ("o", "x"), strict=True):
            k = np.arange(1, len(beyond) + 1)
            shown = beyond > 1e-9
            ax.plot(k[shown], beyond[shown], line, color=colour, linewidth=1.2)
            chosen = round(rank)
            if 0 < chosen <= len(beyond):
                ax.plot(chosen, max(beyond[chosen - 1], 1e-9), marker, color=colour)
    ax.set_yscale("log")
    sides = [
        Line2D([], [], color="black", linestyle="-", marker="o", label="positive, and its rank"),
        Line2D([], [], color="black", linestyle="--", marker="x", label="negative, and its rank"),
    ]
    legend(ax, [*sides, *layer_handles(colours)], loc="center left", bbox_to_anchor=(1, 0.5))
    return dress(ax, "directions k", "share of the energy left after k", "Spectra of the cross-covariances")


def principal_angles(
    lines: Sequence[tuple[int, str, Float[np.ndarray, " _"]]],
    random: Sequence[Float[np.ndarray, "draws _"]],
    title: str,
    ax: Axes | None = None,
) -> Axes:
    """Principal angles in ascending order, a line for each two subspaces, beside those of random ones.

    Args:
        lines: the layer, what is compared, and the angles in degrees.
        random: of random subspaces of the same dimensions, one row a draw.
        title: of the figure.
        ax: where to draw.
    """
    ax = new_axes(ax, (7.5, 3.8))
    colours = layer_colours(sorted({layer for layer, _, _ in lines}))
    markers = dict(zip(dict.fromkeys(name for _, name, _ in lines), itertools.cycle("o^sDvp"), strict=False))
    for layer, name, angles in lines:
        places = np.arange(1, len(angles) + 1)
        ax.plot(places, angles, marker=markers[name], markersize=4, linewidth=1, color=colours[layer])
    handles: list[Artist] = [
        Line2D([], [], color="black", marker=marker, linestyle="", label=name) for name, marker in markers.items()
    ]
    handles += layer_handles(colours)
    drawn = [rows for rows in random if rows.size]
    if drawn:
        width = max(rows.shape[1] for rows in drawn)
        padded = [np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=np.nan) for rows in drawn]
        low, high = np.nanmin(np.concatenate(padded), 0), np.nanmax(np.concatenate(padded), 0)
        ax.fill_between(np.arange(1, width + 1), low, high, color=NEUTRAL, alpha=0.7, zorder=0.5)
        ax.plot(np.arange(1, width + 1), (low + high) / 2, color=NEUTRAL, zorder=0.6)
        handles.append(Patch(color=NEUTRAL, label="random subspaces"))
    ax.set_ylim(0, 95)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(ax, handles, loc="center left", bbox_to_anchor=(1, 0.5))
    return dress(ax, "principal angle (1: nearest directions)", "degrees (90: nothing in common)", title)


def dose_curve(
    frame: pd.DataFrame,
    costs: Sequence[float],
    control_costs: Float[np.ndarray, "controls strengths"],
    control_effects: Float[np.ndarray, "controls strengths"],
    *,
    is_divergence: bool,
    ax: Axes | None = None,
) -> Axes:
    """The effect against its cost, strength by strength, with a grey line for each control edit.

    Args:
        frame: columns strength, effect, low, high and worse.
        costs: divergence in nats, or the strengths themselves.
        control_costs, control_effects: of the controls, likewise.
        is_divergence: whether costs are divergences.
        ax: where to draw.
    """
    ax = new_axes(ax, (7.5, 3.8))
    for place, (cost, found) in enumerate(zip(control_costs, control_effects, strict=True)):
        label = f"{len(control_effects)} control edits" if place == 0 else None
        ax.plot(cost, found, color=NEUTRAL, linewidth=1, marker=".", label=label, zorder=1)
    spread = np.nan_to_num(np.maximum([frame["effect"] - frame["low"], frame["high"] - frame["effect"]], 0))
    ax.errorbar(costs, frame["effect"], yerr=spread, color=AFTER, marker="o", capsize=3, label="edit", zorder=3)
    if is_divergence:
        # Divergence grows with the square of the strength: on a plain axis the weak ones lie on each other.
        if min(costs) > 0:
            ax.set_xscale("log")
        for cost, row in zip(costs, frame.to_dict(orient="records"), strict=True):
            beside = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": SMALL}
            ax.annotate(f"{row['strength']:g}", (cost, row["effect"]), **beside)
    ax.axhline(0, color="black", linewidth=0.8, linestyle=":")
    legend(ax, loc="center left", bbox_to_anchor=(1, 0.5))
    cost = "divergence from the unedited model, nats a token; numbers: strength" if is_divergence else "strength"
    return dress(
        ax, cost, "effect, nats", "Effect of the edit and what it costs" if is_divergence else "Effect by strength"
    )


def layer_signatures(
    signatures: Mapping[int, float], centred: Mapping[int, float] | None = None, ax: Axes | None = None
) -> Axes:
    """Signature of each layer, and the distance of its class means beside it (docs/method.md 2.5).

    Args:
        signatures: of each layer, uncentred: they follow the size of its activations.
        centred: distance of the class means of each layer; not drawn where it is not known.
        ax: where to draw.
    """
    ax = new_axes(ax)
    layers = np.array(list(signatures))
    width = 0.4 if centred else 0.8
    shift = width / 2 if centred else 0.0
    label = "signature: follows the size of activations"
    ax.bar(layers - shift, list(signatures.values()), width, color=NEUTRAL, label=label)
    if centred:
        distances = [centred[layer] for layer in signatures]
        ax.bar(layers + shift, distances, width, color=KEEP, label="distance of positive and negative means")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_yscale("log")
    # Above the highest bar, wherever that stands.
    lowest, highest = ax.get_ylim()
    ax.set_ylim(lowest, highest * (highest / lowest) ** 0.25)
    legend(ax, loc="upper left")
    title = "Size of activations, and distance of the labels' means"
    return dress(ax, "layer", "size, in units of the activations", title)


def comparison(
    rows: Mapping[str, Interval], draws: Sequence[float], control: str, contrast: str, ax: Axes | None = None
) -> Axes:
    """Effects on a contrast with their intervals, above those of control edits, named by `control`, one tick each."""
    ax = new_axes(ax, (7.0, 0.9 + 0.55 * (len(rows) + 1)))
    places = range(len(rows), 0, -1)
    for place, interval in zip(places, rows.values(), strict=True):
        ends = [[interval.mean - interval.low], [interval.high - interval.mean]]
        ax.errorbar(interval.mean, place, xerr=ends, fmt="o", color=AFTER, capsize=4, markersize=7)
        at = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center", "fontsize": SMALL}
        ax.annotate(str(interval), (interval.mean, place), **at)
    ax.plot(draws, np.zeros(len(draws)), "|", color=BEFORE, markersize=16, markeredgewidth=1.5)
    ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
    ax.set_yticks([*places, 0], [*rows, f"{len(draws)} {control}"])
    ax.set_ylim(-0.6, len(rows) + 0.7)
    return dress(ax, f"change of {contrast}, nats", "", "")
