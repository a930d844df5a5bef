"""Figures of an edit and its effect."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .._support.statistics import Interval
from .axes import AFTER, BEFORE, KEEP, NEUTRAL, new_axes


def before_after(
    before: Float[np.ndarray, " items"],
    after: Float[np.ndarray, " items"],
    interval: Interval,
    ax: Axes | None = None,
) -> Axes:
    """Distribution of the contrast over items, unedited and edited, with the interval of the difference."""
    ax = new_axes(ax)
    items = np.concatenate([before, after])
    bins = np.linspace(items.min(), items.max(), 31) if np.ptp(items) > 0 else 10
    for values, colour, label in ((before, BEFORE, "unedited"), (after, AFTER, "edited")):
        ax.hist(values, bins=bins, color=colour, alpha=0.55, label=f"{label}, mean {values.mean():+.2f}")
        ax.axvline(values.mean(), color=colour, linewidth=2)
    ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
    ax.set_xlabel("log p(target) − log p(foil), nats   (right of 0: the target is preferred)")
    ax.set_ylabel("contrasts")
    ax.set_title(f"Effect of the edit: {interval} nats")
    ax.legend(frameon=False)
    return ax


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
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(left)))
    for layer, colour in zip(left, colours, strict=True):
        for beyond, rank, line, marker in zip(left[layer], ranks[layer], ("-", "--"), ("o", "x"), strict=True):
            k = np.arange(1, len(beyond) + 1)
            shown = beyond > 1e-9
            label = f"layer {layer}" if line == "-" else None
            ax.plot(k[shown], beyond[shown], line, color=colour, linewidth=1.2, label=label)
            chosen = round(rank)
            if 0 < chosen <= len(beyond):
                ax.plot(chosen, max(beyond[chosen - 1], 1e-9), marker, color=colour)
    ax.set_yscale("log")
    ax.set_xlabel("directions k   (— and ●: positive and its rank,  - - and ×: negative)")
    ax.set_ylabel("energy left after k")
    ax.set_title("Spectra of the cross-covariances")
    ax.legend(frameon=False, ncols=2, fontsize=8)
    return ax


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
    ax.set_xlabel("layer")
    ax.set_ylabel("size, in units of the activations")
    ax.set_title("Size of activations, and distance of the labels' means")
    # Above the highest bar, wherever that stands.
    lowest, highest = ax.get_ylim()
    ax.set_ylim(lowest, highest * (highest / lowest) ** 0.25)
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    return ax


def comparison(
    rows: Mapping[str, Interval], draws: Sequence[float], control: str, contrast: str, ax: Axes | None = None
) -> Axes:
    """Effects on a contrast with their intervals, above those of control edits, named by `control`, one tick each."""
    ax = new_axes(ax, (7.0, 0.9 + 0.55 * (len(rows) + 1)))
    places = range(len(rows), 0, -1)
    for place, interval in zip(places, rows.values(), strict=True):
        ends = [[interval.mean - interval.low], [interval.high - interval.mean]]
        ax.errorbar(interval.mean, place, xerr=ends, fmt="o", color=AFTER, capsize=4, markersize=7)
        ax.annotate(str(interval), (interval.mean, place), xytext=(0, 8), textcoords="offset points", ha="center")
    ax.plot(draws, np.zeros(len(draws)), "|", color=BEFORE, markersize=16, markeredgewidth=1.5)
    ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
    ax.set_yticks([*places, 0], [*rows, f"{len(draws)} {control}"])
    ax.set_ylim(-0.6, len(rows) + 0.7)
    ax.set_xlabel(f"change of {contrast}, nats")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
