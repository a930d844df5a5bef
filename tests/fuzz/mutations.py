"""What is done to a file: to its bytes, to the values in its JSON, and to the tensors in it."""

import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

from sea_lens._support.seals import NO_SEAL, sealed

VALUES: list[Any] = [
    None, True, False, 0, -1, -7, 1, 2**31, 2**63, -(2**70), 10**30, 0.5, -0.0, 1e308, 1e-320, float("nan"),
    float("inf"), "", "x", "\ud800", "\x00", "nan", "mlp_out", "z", "resid_post", "spectral edit", "é" * 40, [], {},
    [[]], [1], {"a": 1}, [None] * 3, "w" * 5000, "{question:999999999}", "{0}", "{answer}",
]  # fmt: skip
NUMBERS = [b"-7", b"0", b"1e999", b"NaN", b"99999999999999999999", b"-0", b"5", b"1.5", b"Infinity", b"1" * 5000]


def flip(content: bytes, rng: random.Random) -> bytes:
    """A few bits."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        place = rng.randrange(8 * len(changed))
        changed[place // 8] ^= 1 << (place % 8)
    return bytes(changed)


def overwrite(content: bytes, rng: random.Random) -> bytes:
    """A few bytes, or eight at once by a number that makes trouble."""
    place = rng.randrange(len(content))
    odd = [float("nan"), float("inf"), -1.0, 1e300, 5e-324]
    new = rng.choice([rng.randbytes(rng.randint(1, 9)), struct.pack("<d", rng.choice(odd)), b"\xff" * 8, bytes(8)])
    return content[:place] + new + content[place + len(new) :]


def _span(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(content))
    return start, min(len(content), start + rng.choice([1, 2, 8, 64, 500]))


def delete(content: bytes, rng: random.Random) -> bytes:
    """A span less."""
    start, end = _span(content, rng)
    return content[:start] + content[end:]


def double(content: bytes, rng: random.Random) -> bytes:
    """A span twice, or many times."""
    start, end = _span(content, rng)
    return content[:start] + content[start:end] * rng.choice([2, 2, 3, 200]) + content[end:]


def truncate(content: bytes, rng: random.Random) -> bytes:
    """Cut short."""
    return content[: rng.randrange(len(content))]


def move(content: bytes, rng: random.Random) -> bytes:
    """A span somewhere else."""
    start, end = _span(content, rng)
    rest = content[:start] + content[end:]
    place = rng.randrange(len(rest) + 1)
    return rest[:place] + content[start:end] + rest[place:]


def lines(content: bytes, rng: random.Random) -> bytes:
    """Lines doubled, lost, moved or emptied."""
    rows = content.split(b"\n")
    place = rng.randrange(len(rows))
    row = rows.pop(place)
    new = rng.choice([[], [row, row], [b""], [b"{}"], [row[: len(row) // 2]]])
    rows[place:place] = new
    if rng.random() < 0.5:
        rows.insert(rng.randrange(len(rows) + 1), row)
    return b"\n".join(rows)


def numbers(content: bytes, rng: random.Random) -> bytes:
    """A number of the text by another."""
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?", content))
    if not found:
        return flip(content, rng)
    one = rng.choice(found)
    return content[: one.start()] + rng.choice(NUMBERS) + content[one.end() :]


def _changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with something in it replaced, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        if rng.random() < 0.15:
            return {key: one for key, one in value.items() if key != name}
        if rng.random() < 0.1:
            return {**value, rng.choice(["x", "0", "-1", "layers.x", "\x00"]): rng.choice(VALUES)}
        return {**value, name: _changed(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        new = rng.choice([[], [_changed(value[place], rng)], [_changed(value[place], rng)], [value[place]] * 2])
        return [*value[:place], *new, *value[place + 1 :]]
    return rng.choice(VALUES)


def _resealed(content: bytes, rng: random.Random) -> bytes:
    """With a new seal where there was one, most of the time, so that what the seal protects is looked at."""
    place = re.search(rb'sha256": ?"([0-9a-f]{64})"', content)
    if place is None or rng.random() < 0.3:
        return content
    return sealed(content[: place.start(1)] + NO_SEAL.encode() + content[place.end(1) :])


def values(content: bytes, rng: random.Random) -> bytes:
    """A value in the JSON of a text, of one of its lines, or of a safetensors header."""
    if content[8:9] == b"{":
        return header(content, rng)
    try:
        whole = json.loads(content)
        return _resealed(json.dumps(_changed(whole, rng)).encode(), rng)
    except (ValueError, RecursionError):
        rows = content.split(b"\n")
    place = rng.randrange(len(rows))
    try:
        rows[place] = _resealed(json.dumps(_changed(json.loads(rows[place]), rng)).encode(), rng)
    except (ValueError, RecursionError):
        return lines(content, rng)
    return b"\n".join(rows)


def header(content: bytes, rng: random.Random) -> bytes:
    """Something in a safetensors header, or in the tensors, with a new seal most of the time."""
    size = int.from_bytes(content[:8], "little")
    try:
        entries = json.loads(content[8 : 8 + size])
        metadata, data = entries["__metadata__"], bytearray(content[8 + size :])
        kind = rng.random()
        if kind < 0.45:
            metadata["sea_lens.header"] = json.dumps(_changed(json.loads(metadata["sea_lens.header"]), rng))
        elif kind < 0.6:
            entries = _changed(entries, rng)
        elif kind < 0.65:
            # As version 0.1.0 wrote it.
            entries["__metadata__"] = {key: metadata[key] for key in ("sea_lens.kind", "sea_lens.header")}
        if kind >= 0.6:
            _change_tensor(entries, data, rng)
        text = json.dumps(entries).encode()
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, struct.error):
        return flip(content, rng)
    text += b" " * (-len(text) % 8)
    return _resealed(len(text).to_bytes(8, "little") + text + bytes(data), rng)


def _change_tensor(entries: dict[str, Any], data: bytearray, rng: random.Random) -> None:
    name = rng.choice([name for name in entries if name != "__metadata__"])
    start, end = entries[name]["data_offsets"]
    integers = entries[name]["dtype"] == "I64"
    code = {"F64": "d", "I64": "q"}.get(entries[name]["dtype"], "f")
    n = (end - start) // struct.calcsize(code)
    found = list(struct.unpack(f"<{n}{code}", data[start:end]))
    if integers:
        found[rng.randrange(n)] = rng.choice([-7, 0, 1, 2, 99, 2**62])
    else:
        factor, place = rng.choice([5.0, -1.0, 0.0, 1 + 1e-3, 1e200]), rng.randrange(n)
        one = [float("nan"), float("inf"), 1.0, -1.0, 0.0]
        change = rng.randrange(4)
        if change == 0:
            found = [factor * value for value in found]
        elif change == 1:
            found[place] = rng.choice(one)
        elif change == 2:
            found[place] *= factor
        else:
            found.reverse()
    if code == "f":
        found = [max(-3e38, min(3e38, value)) for value in found]
    data[start:end] = struct.pack(f"<{n}{code}", *found)


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    flip, overwrite, delete, double, truncate, move, lines, numbers, values, values, values,
]  # fmt: skip


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with one mutation, or a few."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if content:
            content = rng.choice(MUTATIONS)(content, rng)
        # No input is larger than what is to be read in a moment.
        content = content[:200_000]
    return content
