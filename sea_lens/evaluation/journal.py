"""What an evaluation has done so far, on disk, so that it can be killed and go on.

JSON Lines: first what the evaluation is, then one line for each finished part. A line that the kill cut short is done
again. Parts are the same however often the evaluation is interrupted, so that the results are too, bit for bit.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._support.json_files import plain
from .._support.files import write_atomically
from ..errors import FileError, MismatchError

_BEGINNING = b'{"evaluation": '


class Journal:
    """The finished parts of one evaluation.

    Args:
        path: the file; made if it is missing, continued if it is there.
        identity: everything that the results depend on, as JSON content.

    Raises:
        MismatchError: the file belongs to an evaluation of something else; says of what.
        FileError: it cannot be read or written, or is no journal.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.identity = json.loads(json.dumps(plain(identity)))
        self.parts: dict[int, list[dict[str, Any]]] = {}
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise FileError(f"{path}: {error.strerror or error}") from error
        if content and not content.startswith(_BEGINNING):
            raise self._no_journal()
        lines = content.split(b"\n")
        # Whatever stands behind the last newline was cut short.
        complete = [line for line in lines[:-1] if line]
        if complete:
            self._read(complete)
        # Written anew without what was cut short, whose rest would spoil the next line.
        kept = b"".join(line + b"\n" for line in complete)
        write_atomically(self.path, kept or self._line({"evaluation": self.identity}))

    def _read(self, lines: list[bytes]) -> None:
        try:
            first, *parts = [json.loads(line) for line in lines]
            found = dict(first["evaluation"])
            self.parts = {part["part"]: part["items"] for part in parts}
        except (ValueError, KeyError, TypeError) as error:
            raise self._no_journal() from error
        if other := [name for name in self.identity if not _same(found.get(name), self.identity[name])]:
            raise MismatchError(
                f"{self.path} holds the beginning of another evaluation (other {', '.join(other)}): "
                f"delete it to start anew"
            )

    def _no_journal(self) -> FileError:
        return FileError(f"{self.path} is no journal of an evaluation: give another path, or delete it")

    @staticmethod
    def _line(content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False).encode() + b"\n"

    def add(self, part: int, items: list[dict[str, Any]]) -> None:
        """Note that a part is finished; on disk when this returns."""
        self.parts[part] = items
        try:
            with self.path.open("ab") as file:
                file.write(self._line({"part": part, "items": items}))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FileError(f"cannot write {self.path}: {error.strerror}") from error


def _same(found: Any, own: Any) -> bool:
    """Whether two JSON values are the same, numbers up to what rounding may do to a model's predictions."""
    if isinstance(found, dict) and isinstance(own, dict):
        return found.keys() == own.keys() and all(_same(found[name], own[name]) for name in own)
    if isinstance(found, list) and isinstance(own, list):
        return len(found) == len(own) and all(map(_same, found, own))
    if isinstance(found, float) and isinstance(own, float):
        return math.isclose(found, own, rel_tol=1e-6, abs_tol=1e-4)
    return type(found) is type(own) and found == own
