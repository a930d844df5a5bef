"""Sentences of `sea-lens circuit`, computed from rows of its tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .._support.arguments import counted
from .._support.tables import rows_of
from ..contributions.base import Contributions
from ..contributions.interaction_results import Interactions
from ..contributions.token_results import TextTokens, TokenContributions

# Rows of each kind that sentences name.
NAMED = 3
# What is smaller is shown as 0.
LEAST_SHOWN = 5e-4
# Controls with which a p-value can be 0.05.
FEWEST_CONTROLS = 19


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


def verdict(frame: pd.DataFrame, what: str, controls: int) -> str:
    """How many parts are beyond their controls, corrected for all of them; or that the controls are too few to show it.

    Args:
        frame: has `p_corrected` where there are controls.
        what: the parts are.
        controls: how many there are.
    """
    if not controls or "p_corrected" not in frame:
        return f"No control stands beside {what}."
    if controls < FEWEST_CONTROLS:
        return (
            f"{counted(controls, 'control')} cannot show which of {len(frame)} {what} are beyond them: "
            f"that takes {FEWEST_CONTROLS}."
        )
    few = frame["p_corrected"].min()
    least = int((frame["p_corrected"] <= 0.05).sum())
    if least == 0:
        return (
            f"None of {len(frame)} {what} is beyond the controls for certain (least p = {few:.2f}, corrected for all)."
        )
    return f"{least} of {len(frame)} {what} {'is' if least == 1 else 'are'} beyond the controls (p ≤ 0.05, corrected)."


def told_of(
    found: Contributions, what: str, n: int = NAMED, *, among: Sequence[Any] | None = None, with_verdict: bool = True
) -> list[str]:
    """The largest parts of a result by name, and how many are beyond their controls.

    They are chosen on half of the contrasts where there are enough, and told by the others: chance is no reason then.

    Args:
        found: the result.
        what: its parts are.
        n: how many to name.
        among: the labels to choose from; all by default.
        with_verdict: whether to say how many are beyond their controls.
    """
    allowed = set(found.labels if among is None else among)
    chosen = [label for label, _ in found.top(len(found.labels), held_out=found.can_split) if label in allowed][:n]
    # Where all are named none is chosen.
    is_choice = len(allowed) > n
    lines = [which_contrasts(found, what)] if is_choice else []
    for label in chosen:
        lines.append(f"{sentence(found.named(label))}: {told_value(found, label, held_out=is_choice)}.")
    rows = found.to_frame().query("value != 0")
    return [*lines, verdict(rows, what, found.n_controls)] if with_verdict else lines


def which_contrasts(found: Contributions, what: str) -> str:
    """Which contrasts the named parts were chosen on, and which tell of them."""
    of, n = "prompt" if isinstance(found, TokenContributions) else "contrast", len(found.item_values)
    if not found.can_split:
        return f"The largest {what} on {counted(n, of)}, which are too few to choose on some and tell by others:"
    beside = ", and on all beside controls" if found.control_values is not None else ""
    return f"The largest {what} on half of the {of}s, with their values on the other {n // 2}{beside}:"


def told_value(found: Contributions, label: Any, *, held_out: bool) -> str:
    """A part's value and interval.

    Args:
        found: the result.
        label: of the part.
        held_out: whether the part was chosen, so that its value and interval are those on the contrasts that it was not
            chosen on, where there are enough. The range of the controls and the p-value are those on all contrasts, and
            stand beside the value on all.
    """
    row = rows_of(found.to_frame())[list(found.labels).index(label)]
    if not held_out or not found.can_split:
        return measured(row)
    other = found.interval(label, held_out=True)
    told = measured({"value": other.mean, "low": other.low, "high": other.high})
    if math.isnan(row.get("control_low", math.nan)):
        return told
    return f"{told}; on all {measured({name: value for name, value in row.items() if name not in ('low', 'high')})}"


def told_of_pairs(found: Interactions) -> str:
    """What a pair of layers does beyond its two: the only one, or the one of several that does most."""
    n = len(found.pairs)
    pair = next(label for label, _ in found.top(len(found.labels), held_out=found.can_split) if len(label) == 2)
    told = f"beyond what each does by itself: {told_value(found, pair, held_out=n > 1)}."
    if n == 1:
        return f"Layers {pair[0]} and {pair[1]} do together, {told}"
    return f"Of {n} pairs layers {pair[0]} and {pair[1]} do most {told}"


def sentence(text: str) -> str:
    """With a capital."""
    return text[:1].upper() + text[1:]


def changed_most(text: TextTokens, change: float) -> list[str]:
    """The continuation that is changed most, its change in nats, and what the unedited model prefers there.

    Nothing where nothing changes.
    """
    if abs(change) < LEAST_SHOWN:
        return []
    where = f"behind “{text.prompt.strip()}”, where it writes “{text.text.strip()}”"
    lines = [f"The change is largest {where}: {signed(change)} nats."]
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
