"""Sentences of `sea-lens circuit`, computed from rows of its tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .._support.tables import rows_of
from ..contributions.base import Contributions
from ..contributions.token_results import TextTokens

# Rows of each kind that sentences name.
NAMED = 3
# What is smaller is shown as 0.
LEAST_SHOWN = 5e-4


def signed(value: float) -> str:
    """A number with its sign."""
    return "undefined" if math.isnan(value) else f"{value:+.3f}"


def measured(row: Mapping[Any, Any], value: str = "value", unit: str = " nats") -> str:
    """A number of a table with its interval, the range of the controls and the p-value, corrected where it can be."""
    told = f"{signed(row[value])}{unit}"
    if "low" in row and not math.isnan(row["low"]):
        told += f" [{signed(row['low'])}, {signed(row['high'])}]"
    if not math.isnan(row.get("control_low", math.nan)):
        told += f", controls {signed(row['control_low'])} to {signed(row['control_high'])}"
        p = row.get("p_corrected", row.get("p", math.nan))
        told += f", p = {p:.2f}{' corrected' if 'p_corrected' in row else ''}"
    return told


def by_size(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows by descending size of their value."""
    order = frame["value"].abs().sort_values(ascending=False, kind="stable").index
    return frame.loc[order]


def verdict(frame: pd.DataFrame, what: str) -> str:
    """How many parts are beyond their controls, corrected for all of them."""
    if "p_corrected" not in frame:
        return f"No control stands beside {what}."
    few = frame["p_corrected"].min()
    least = int((frame["p_corrected"] <= 0.05).sum())
    if least == 0:
        return (
            f"None of {len(frame)} {what} is beyond the controls for certain (least p = {few:.2f}, corrected for all)."
        )
    return f"{least} of {len(frame)} {what} {'is' if least == 1 else 'are'} beyond the controls (p ≤ 0.05, corrected)."


def told_of(found: Contributions, what: str, n: int = NAMED, *, with_verdict: bool = True) -> list[str]:
    """The largest parts of a result by name, and how many are beyond their controls.

    They are chosen on half of the contrasts where there are enough, so that chance is no reason.
    """
    rows = rows_of(found.to_frame())
    named = dict(zip(found.labels, rows[: len(found.labels)], strict=True))
    chosen = [label for label, _ in found.top(n, held_out=found.can_split)]
    lines = [f"{sentence(found.named(label))}: {measured(named[label])}." for label in chosen]
    return [*lines, verdict(found.to_frame().query("value != 0"), what)] if with_verdict else lines


def sentence(text: str) -> str:
    """With a capital."""
    return text[:1].upper() + text[1:]


def changed_most(text: TextTokens, change: float) -> list[str]:
    """The continuation that is changed most, its change in nats, and what the unedited model prefers there.

    Nothing where nothing changes.
    """
    if abs(change) < LEAST_SHOWN:
        return []
    lines = [
        f"The change is largest behind “{text.prompt.strip()}”, where it writes “{text.text.strip()}”: "
        f"{signed(change)} nats."
    ]
    other = [(token, best) for token, best in zip(text.tokens, text.preferred, strict=True) if token != best]
    if other:
        token, best = other[0]
        lines.append(f"There the unedited model prefers “{best.strip()}” to “{token.strip()}”.")
    return lines


def of_the_whole(found: Contributions) -> dict[str, float]:
    """The interval of a whole effect, and the range of the controls."""
    interval = found.effect_interval
    told = {"low": interval.low, "high": interval.high}
    if found.control_effects is not None:
        low, high = found.control_effects.min().item(), found.control_effects.max().item()
        told |= {"control_low": low, "control_high": high, "p": found.effect_p_value}
    return told
