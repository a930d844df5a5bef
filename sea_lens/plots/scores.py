"""Figure of what an edit does to the scores of a benchmark."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .axes import AFTER, new_axes

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
    ax = new_axes(ax)
    frame = frame[np.isfinite(frame["difference"])].iloc[:_SHOWN][::-1]
    places = np.arange(len(frame))
    if "control_low" in frame:
        width = frame["control_high"] - frame["control_low"]
        ax.barh(places, width, left=frame["control_low"], color="0.85", height=0.6, label="range of the controls")
    spread = [frame["difference"] - frame["low"], frame["high"] - frame["difference"]]
    ax.errorbar(
        frame["difference"], places, xerr=np.maximum(spread, 0), fmt="o", color=AFTER, capsize=3, label="95 % interval"
    )
    ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
    labels = [f"{name}   {row.before:.3g} → {row.after:.3g}" for name, row in frame.iterrows()]
    ax.set_yticks(places, labels)
    ax.set_ylim(-0.6, len(frame) - 0.4)
    ax.set_xlabel("difference, edited − unedited")
    ax.set_title(title)
    ax.legend(frameon=False, loc="best")
    return ax
