"""Figures; every function draws on given axes, or on new ones, and returns them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .statistics import Interval

if TYPE_CHECKING:
    from .contributions.results import HeadContributions, LayerContributions
    from .effect import Effect
    from .spectral import SpectralEdit

BEFORE, AFTER, NEUTRAL = "#8c8c8c", "#1b6ca8", "#c9c9c9"
KEEP, DROP = "#1b6ca8", "#c44536"

METHOD_TITLES = {
    "path": "integrated along the edit's strength",
    "shapley": "Shapley values",
    "leave_one_out": "what is lost without the layer's edit",
    "only_one": "what the layer's edit does alone",
}


def new_axes(ax: Axes | None, size: tuple[float, float] = (6.0, 3.6)) -> Axes:
    """The given axes, or the axes of a new figure."""
    return ax if ax is not None else plt.subplots(figsize=size, layout="constrained")[1]


def before_after(effect: "Effect", ax: Axes | None = None) -> Axes:
    """Distribution of the contrast over items, unedited and edited."""
    ax = new_axes(ax)
    items = np.concatenate([effect.before_items.numpy(), effect.after_items.numpy()])
    bins = np.linspace(items.min(), items.max(), 31) if np.ptp(items) > 0 else 10
    for values, mean, colour, label in (
        (effect.before_items, effect.before, BEFORE, "unedited"),
        (effect.after_items, effect.after, AFTER, "edited"),
    ):
        ax.hist(values.numpy(), bins=bins, color=colour, alpha=0.55, label=f"{label}, mean {mean:+.2f}")
        ax.axvline(mean, color=colour, linewidth=2)
    ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
    ax.set_xlabel("log p(target) − log p(foil), nats   (right of 0: the target is preferred)")
    ax.set_ylabel("contrasts")
    ax.set_title(f"Effect of the edit: {effect.interval} nats")
    ax.legend(frameon=False)
    return ax


def layer_bars(contributions: "LayerContributions", ax: Axes | None = None) -> Axes:
    """A bar for each edited layer, with its bootstrap interval over contrasts."""
    ax = new_axes(ax)
    frame = contributions.to_frame()
    values = frame["value"].to_numpy()
    errors = np.abs(np.stack([values - frame["low"], frame["high"] - values]))
    ax.bar(frame["layer"], values, yerr=errors, color=[KEEP if v >= 0 else DROP for v in values], capsize=4)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.axhline(contributions.effect, color=BEFORE, linestyle="--", linewidth=1.2)
    ax.annotate(
        f"whole edit {contributions.effect:+.2f}",
        (1.0, contributions.effect),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        color=BEFORE,
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("layer")
    ax.set_ylabel("contribution to the effect, nats")
    ax.set_title(f"Layers: {METHOD_TITLES[contributions.method]}")
    ax.margins(y=0.15)
    return ax


def head_map(contributions: "HeadContributions", ax: Axes | None = None) -> Axes:
    """Head × layer map of direct contributions."""
    values = contributions.values.numpy()
    n_layers, n_heads = values.shape
    ax = new_axes(ax, (1.6 + 0.55 * n_heads, 1.6 + 0.5 * n_layers))
    bound = float(np.abs(values).max()) or 1.0
    image = ax.imshow(values, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
    decimals = 2 if bound >= 0.1 else 3
    if values.size <= 64:
        for layer in range(n_layers):
            for head in range(n_heads):
                value = values[layer, head]
                shade = "white" if abs(value) > 0.6 * bound else "black"
                ax.text(head, layer, f"{value:+.{decimals}f}", ha="center", va="center", fontsize=7, color=shade)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    ax.set_title(
        f"Heads' direct share of the change of the logit difference ({contributions.effect:+.2f})\n"
        f"closure error {contributions.closure_error:.0e}",
        fontsize=10,
    )
    figure = ax.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=ax, label="logits")
    return ax


def spectra(edit: "SpectralEdit", ax: Axes | None = None) -> Axes:
    """Spectral energy left after k directions, for each layer, with the chosen ranks marked."""
    ax = new_axes(ax)
    power = float(edit.options["spectrum_power"])
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(edit.layers)))
    for layer, colour in zip(edit.layers, colours, strict=True):
        subspaces = edit.subspaces[layer]
        sides = (
            (subspaces.keep_values, subspaces.keep_rank, "-", "o"),
            (subspaces.drop_values, subspaces.drop_rank, "--", "x"),
        )
        for values, rank, line, marker in sides:
            energy = values.mean(0).numpy() ** power
            left = 1 - np.cumsum(energy) / energy.sum()
            k = np.arange(1, len(left) + 1)
            shown = left > 1e-9
            label = f"layer {layer}" if line == "-" else None
            ax.plot(k[shown], left[shown], line, color=colour, linewidth=1.2, label=label)
            chosen = round(rank.double().mean().item())
            if 0 < chosen <= len(left):
                ax.plot(chosen, max(left[chosen - 1], 1e-9), marker, color=colour)
    ax.set_yscale("log")
    ax.set_xlabel("directions k   (— and ●: positive and its rank,  - - and ×: negative)")
    ax.set_ylabel("energy left after k")
    ax.set_title("Spectra of the cross-covariances")
    ax.legend(frameon=False, ncols=2, fontsize=8)
    return ax


def signature(edit: "SpectralEdit", ax: Axes | None = None) -> Axes:
    """Signature of each layer."""
    ax = new_axes(ax)
    ax.bar(list(edit.signature), list(edit.signature.values()), color=KEEP)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("layer")
    ax.set_ylabel("signature")
    ax.set_title("How strongly each layer's activations covary with the label")
    return ax


def comparison(rows: Mapping[str, Interval], draws: Sequence[float], ax: Axes | None = None) -> Axes:
    """Effects with their intervals, above the effects of random subspaces, one dot a draw."""
    ax = new_axes(ax, (7.0, 0.9 + 0.55 * (len(rows) + 1)))
    places = range(len(rows), 0, -1)
    for place, interval in zip(places, rows.values(), strict=True):
        ends = [[interval.mean - interval.low], [interval.high - interval.mean]]
        ax.errorbar(interval.mean, place, xerr=ends, fmt="o", color=AFTER, capsize=4, markersize=7)
        ax.annotate(str(interval), (interval.mean, place), xytext=(0, 8), textcoords="offset points", ha="center")
    ax.plot(draws, np.zeros(len(draws)), "|", color=BEFORE, markersize=16, markeredgewidth=1.5)
    ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
    ax.set_yticks([*places, 0], [*rows, f"{len(draws)} random subspaces\nof the same ranks"])
    ax.set_ylim(-0.6, len(rows) + 0.7)
    ax.set_xlabel("change of log p(truth) − log p(myth), nats")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
