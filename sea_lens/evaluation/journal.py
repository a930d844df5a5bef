"""What a long run has done so far, on disk, so that it can be killed and go on.

JSON Lines: first what the run is, then one line for each finished part, in order. Each line is sealed, and its seal
covers the seal of the line before, so that no line can be changed, lost, doubled or moved. A line that the kill cut
short is done again. Parts are the same however often the run is interrupted, so that the results are too, bit for bit.
One process at a time writes a journal: a second one is refused (`Claim`).
"""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from .._support.claims import Claim
from .._support.files import write_atomically
from .._support.json_files import plain
from .._support.processes import is_first, of_first
from .._support.regular_files import check_name, read_regular, why
from .._support.seals import NO_SEAL, has_seal, sealed
from .._support.strict_json import parse_json
from ..errors import FileError, MismatchError


class Journal:
    """The finished parts of one run.

    Args:
        path: the file; continued if it is there, else made with the first part, so that a run that is refused
            leaves none.
        identity: everything that the results depend on, as JSON content.
        run: what is being done, such as "evaluation".

    Attributes:
        parts: the finished ones by number, from 0 without a gap; JSON content.

    Raises:
        MismatchError: the file belongs to a run of something else; says of what.
        FileError: it cannot be read or written, is no journal, was changed since it was written, or another process is
            writing it.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any], run: str = "evaluation") -> None:
        self.path = check_name(path)
        self.run = run
        self.identity = json.loads(json.dumps(plain(identity)))
        self.parts: dict[int, Any] = {}
        self._seal = ""
        self._claim: Claim | None = None
        # The first of several processes alone reads and writes.
        self.parts = of_first(self._begun)

    def _begun(self) -> dict[int, Any]:
        """The finished parts that the file has; what was cut short is taken off it."""
        try:
            there = self.path.exists()
        except (OSError, ValueError) as error:
            raise FileError(f"{self.path}: {why(error)}") from error
        self._claim = Claim(self.path) if there else None
        # Whatever stands behind the last newline was cut short.
        content = read_regular(self.path) if there else b""
        lines = content.split(b"\n")[:-1]
        if content and not lines:
            raise self._unusable(1)
        self._read(lines)
        if lines:
            # Written anew without what was cut short, whose rest would spoil the next line.
            write_atomically(self.path, b"".join(line + b"\n" for line in lines))
            self._claim = Claim(self.path)
        return self.parts

    def _read(self, lines: list[bytes]) -> None:
        for number, line in enumerate(lines, start=1):
            try:
                content = parse_json(line.decode("utf-8"))
                seal, after = content.pop("sha256"), content.pop("after")
                own = isinstance(seal, str) and after == self._seal and has_seal(line, seal)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                raise self._unusable(number) from error
            if not own:
                raise self._unusable(number)
            self._seal = seal
            if number == 1:
                self._check_identity(content)
            elif content.keys() == {"part", "content"} and content["part"] == number - 2:
                self.parts[number - 2] = content["content"]
            else:
                raise self._unusable(number)

    def _check_identity(self, content: dict[str, Any]) -> None:
        found = content.get(self.run)
        if not isinstance(found, dict):
            raise self._unusable(1)
        if other := [name for name in self.identity if not _same(found.get(name), self.identity[name])]:
            raise MismatchError(
                f"{self.path} holds the beginning of another {self.run} (other {', '.join(other)}): "
                f"delete it to start anew"
            )

    def _unusable(self, number: int) -> FileError:
        what = f"is no journal of {self.run}" if number == 1 else f"is damaged in line {number}"
        return FileError(f"{self.path} {what}: give another path, or delete it to start anew")

    def _line(self, content: Mapping[str, Any]) -> bytes:
        whole = {**content, "after": self._seal, "sha256": NO_SEAL}
        line = sealed(json.dumps(whole, ensure_ascii=False).encode())
        self._seal = json.loads(line)["sha256"]
        return line + b"\n"

    def add(self, part: int, content: Any) -> None:
        """Note that the next part is finished; on disk when this returns."""
        assert part == len(self.parts)
        if not is_first():
            self.parts[part] = content
            return
        begun = bool(self._seal)
        start = b"" if begun else self._line({self.run: self.identity})
        line = start + self._line({"part": part, "content": content})
        self.parts[part] = content
        if not begun:
            if self._claim is None and self.path.exists():
                raise FileError(f"{self.path} was begun by another process: give another path, or wait for its end")
            write_atomically(self.path, line)
            self._claim = Claim(self.path)
            return
        if self._claim is None or not self._claim.holds:
            raise FileError(f"{self.path} was taken away or written by another process: give another path")
        try:
            with self.path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FileError(f"cannot write {self.path}: {why(error)}") from error


def _same(found: Any, own: Any) -> bool:
    """Whether two JSON values are the same, numbers up to what rounding may do to a model's predictions."""
    if isinstance(found, dict) and isinstance(own, dict):
        return found.keys() == own.keys() and all(_same(found[name], own[name]) for name in own)
    if isinstance(found, list) and isinstance(own, list):
        return len(found) == len(own) and all(map(_same, found, own))
    if isinstance(found, float) and isinstance(own, float):
        return math.isclose(found, own, rel_tol=1e-6, abs_tol=1e-4)
    return type(found) is type(own) and found == own
