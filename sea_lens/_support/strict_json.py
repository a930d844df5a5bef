"""JSON as it is read from files that a program wrote: nothing in it that JSON does not have or that says two things."""

import json
from collections import Counter
from typing import Any


def parse_json(text: str) -> Any:
    """The content of a JSON text.

    Raises:
        ValueError: it is none, holds NaN or infinities, a key twice, half a character (a lone surrogate), a number
            that Python cannot hold, or is nested more deeply than Python can follow.
    """
    try:
        content = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
        # A text that UTF-8 does not have can come of an escape alone.
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"the key {counts.most_common(1)[0][0]!r} stands twice in one object")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is too large")
    return number
