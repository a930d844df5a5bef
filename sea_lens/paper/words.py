"""Sentences that are computed from rows of a table, so that they say nothing that the numbers do not."""

import math
from collections.abc import Mapping
from typing import Any

# Of the scores, those that are better when they are higher.
BETTER_HIGHER = {"mc1", "mc2", "mc3", "accuracy", "accuracy_normalised", "contrast", "truth", "info", "truth_and_info"}


def changed(row: Mapping[Any, Any]) -> str:
    """Before, after, and the difference with its interval."""
    return (
        f"{_digits(row['before'])} → {_digits(row['after'])} "
        f"({_signed(row['difference'])} [{_signed(row['low'])}, {_signed(row['high'])}])"
    )


def control(row: Mapping[Any, Any]) -> str:
    """What the control edits do, with the p-value; nothing where there are none."""
    if not row.get("controls") or "control_low" not in row or math.isnan(row["control_low"]):
        return ""
    return (
        f"{row['controls']} fit{'s' * (row['controls'] > 1)} to shuffled demonstrations: "
        f"{_signed(row['control_low'])} to "
        f"{_signed(row['control_high'])}, p = {row['p']:.2f}"
    )


def verdict(row: Mapping[Any, Any]) -> str:
    """What the numbers of a row say, in a few words."""
    low, high = row["low"], row["high"]
    if math.isnan(row["difference"]) or math.isnan(low):
        return "cannot be told: the score is not defined here"
    if low <= 0 <= high:
        return "no clear change"
    up = row["difference"] > 0
    better = (
        "" if row["score"].split("/")[0] not in BETTER_HIGHER else (", for the better" if up else ", for the worse")
    )
    told = f"clearly {'higher' if up else 'lower'}{better}"
    if not row.get("controls") or math.isnan(row.get("control_low", math.nan)):
        return f"{told}; no control beside it"
    ahead = row["difference"] - row["control_high"] if up else row["control_low"] - row["difference"]
    # What is equal but for rounding counts as equal, as in the p-value.
    if ahead > 1e-9 * abs(row["difference"]):
        # The smallest p-value that so many controls can give (docs/method.md 6.8).
        far = row["p"] <= 1 / (1 + row["controls"]) + 1e-9
        beyond = f"{told}, and beyond every fit to shuffled demonstrations"
        return beyond if far else f"{beyond}, by less than these differ"
    return f"{told}, but fits to shuffled demonstrations do as much: the labels are not why"


def sentence(name: str, row: Mapping[Any, Any]) -> str:
    """One row as a sentence."""
    beside = control(row)
    return f"{_began(name)}: {row['score']} {changed(row)}{f'; {beside}' if beside else ''}: {verdict(row)}."


def beyond(row: Mapping[Any, Any], what: str = "") -> str:
    """What a row's edit does beyond the one that it is compared with, paired by items.

    Args:
        row: with reference, more, more_low and more_high.
        what: the row's edit; its name by default.
    """
    ends = row["more_low"], row["more_high"]
    told = f"{_began(what or row['name'])} beside {row['reference']}: {_signed(row['more'])} "
    told += f"[{_signed(ends[0])}, {_signed(ends[1])}]"
    if any(map(math.isnan, ends)):
        return f"{told}, which tells nothing."
    if ends[0] <= 0 <= ends[1]:
        return f"{told}, no clear difference."
    return f"{told}, clearly {'more' if ends[0] > 0 else 'less'}."


def _began(name: str) -> str:
    """A name at the beginning of a sentence."""
    return name[:1].upper() + name[1:]


def _digits(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:+.3f}"
