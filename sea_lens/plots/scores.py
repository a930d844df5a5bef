"""Figure of what an edit does to the scores of a benchmark."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .axes import AFTER, NEUTRAL, broken, dress, new_axes

_SHOWN = 30


def score_differences(frame: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Difference of each score with its interval, and the range of the controls.

    Scores that are NaN are left out; of the others the first 30 are drawn.

    Args:
        frame: a row for each score, with the columns before, after, difference, low, high, and with controls
            control_low and control_high.
        title: of the figure.
        ax: where to draw.
    """
    frame = frame[np.isfinite(frame["difference"])].iloc[:_SHOWN][::-1]
    ax = new_axes(ax, (7.0, 1.6 + 0.28 * max(len(frame), 3)))
    # A range must not look cut off where it ends.
    ax.use_sticky_edges = False
    places = np.arange(len(frame))
    if "control_low" in frame:
        width = frame["control_high"] - frame["control_low"]
        ax.barh(places, width, left=frame["control_low"], color=NEUTRAL, height=0.6)
    spread = [frame["difference"] - frame["low"], frame["high"] - frame["difference"]]
    ax.errorbar(frame["difference"], places, xerr=np.maximum(spread, 0), fmt="o", color=AFTER, capsize=3)
    ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
    labels = [f"{name}   {row.before:.3g} → {row.after:.3g}" for name, row in frame.iterrows()]
    ax.set_yticks(places, labels)
    ax.set_ylim(-0.6, len(frame) - 0.4)
    beside = "; grey: range of the controls" if "control_low" in frame else ""
    # Names of scores take half of the figure.
    return dress(ax, "difference, edited − unedited", "", broken(f"{title}\n● 95 % interval{beside}", 3.8))
