"""Reading rows of text files, with errors that name the file and the row (counted from 1)."""

import codecs
import csv
import io
import json
import os
import re
import reprlib
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import FileError
from .regular_files import check_name, read_regular


def ending(path: str | os.PathLike[str]) -> str:
    """What a file's name ends in, in small letters: ".csv" for "ROWS.CSV", "" where there is no dot."""
    _, dot, last = os.fspath(check_name(path)).rpartition(".")
    return dot + last.casefold() if dot else ""


def read_text(path: str | os.PathLike[str]) -> str:
    """A UTF-8 text file, a byte order mark left out.

    Raises:
        FileError: missing, unreadable, no regular file (a folder, a pipe, a device), or not UTF-8.
    """
    content = read_regular(path)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FileError(f"{path} is not a UTF-8 text file: it is in UTF-16 or UTF-32")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not a UTF-8 text file (byte {error.start})") from error
    if "\0" in text:
        raise FileError(f"{path} is not a UTF-8 text file (a NUL at character {text.index(chr(0))})")
    return text


class _RepeatedKeyError(ValueError):
    """A key that stands twice in one JSON object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKeyError(f"the key {shown(key)} stands twice in one object")
        found[key] = value
    return found


def _parse(text: str, what: str, *, one_line: bool) -> Any:
    """JSON whose objects hold each key once; `what` is what errors call it."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if one_line else f"line {error.lineno}"
        raise FileError(f"{what}: not JSON ({error.msg}, {where})") from error
    except _RepeatedKeyError as error:
        raise FileError(f"{what}: {error}") from error
    except RecursionError as error:
        raise FileError(f"{what}: JSON that Python cannot hold (nested too deep)") from error
    except ValueError as error:
        raise FileError(f"{what}: JSON that Python cannot hold ({error})") from error


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, object) of each JSON line; empty lines are counted and passed over.

    Lines end at a newline only, or at a carriage return in a file without newlines: JSON strings may hold other Unicode
    line separators.

    Raises:
        FileError: as `read_text`, a row that is not a JSON object or holds a key twice (names it), or no rows at all.
    """
    found, text = False, read_text(path)
    for number, line in enumerate(text.split("\n" if "\n" in text else "\r"), start=1):
        if not line.strip():
            continue
        row = _parse(line, f"{path}, row {number}", one_line=True)
        if not isinstance(row, dict):
            raise FileError(f"{path}, row {number}: expected a JSON object, got {type(row).__name__}")
        found = True
        yield number, row
    if not found:
        raise FileError(f"{path} has no rows")


# The key of the fields beyond the header; no column is called this.
_MORE = "\0"


def read_csv(path: str | os.PathLike[str], *, delimiter: str = ",") -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, record) of each CSV record under a header row; the first record is row 1.

    Args:
        path: the file.
        delimiter: what stands between fields.

    Raises:
        FileError: as `read_text`, not CSV, two columns of one name, no header, no records, or a record with more or
            fewer fields than the header; names the row where there is one.
    """
    csv.field_size_limit(2**31 - 1)
    # Lines end at newlines only: a field may hold other Unicode line separators.
    lines = io.StringIO(read_text(path), newline="")
    reader = csv.DictReader(lines, strict=True, restkey=_MORE, restval=None, delimiter=delimiter)
    number = 0
    try:
        header = reader.fieldnames or []
        if twice := [name for name in header if header.count(name) > 1]:
            raise FileError(f"{path}: two columns are called {twice[0]!r}")
        for number, row in enumerate(reader, start=1):
            if _MORE in row or None in row.values():
                raise FileError(f"{path}, row {number}: expected {len(header)} fields")
            yield number, row
    except csv.Error as error:
        raise FileError(f"{path}, row {number + 1}: not CSV ({error})") from error
    if number == 0:
        raise FileError(f"{path} has no rows")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file.

    Raises:
        FileError: as `read_text`, empty, not JSON, or an object that holds a key twice.
    """
    text = read_text(path)
    if not text.strip():
        raise FileError(f"{path} is empty: expected JSON")
    return _parse(text, f"{path}", one_line=False)


def read_json_list(path: str | os.PathLike[str]) -> Iterator[tuple[int, Any]]:
    """(row number, entry) of a JSON file that holds a list.

    Raises:
        FileError: as `read_json`, no list, or an empty one.
    """
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise FileError(f"{path}: expected a list with at least one entry")
    yield from enumerate(content, start=1)


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, record) of a file by what its name ends in: .csv, .tsv, .json (a list of objects), else JSON Lines.

    Raises:
        FileError: a missing or malformed file; names the row where there is one.
    """
    kind = ending(path)
    if kind in (".csv", ".tsv"):
        yield from read_csv(path, delimiter="," if kind == ".csv" else "\t")
    elif kind == ".json":
        for number, row in read_json_list(path):
            yield number, as_record(path, number, row)
    else:
        yield from read_jsonl(path)


def as_record(path: str | os.PathLike[str], number: int, row: Any) -> dict[str, Any]:
    """A row that must be an object with fields.

    Raises:
        FileError: it is something else; names the row.
    """
    if not isinstance(row, dict):
        raise FileError(f"{path}, row {number}: expected an object with fields, got {type(row).__name__}")
    return row


_HALF = re.compile("[\ud800-\udfff]")


def has_half_character(text: str) -> bool:
    """Whether a text holds a lone surrogate: JSON can hold one, UTF-8 text and tokenizers cannot."""
    return _HALF.search(text) is not None


class _Shown(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 200


_REPR = _Shown()


def shown(value: Any) -> str:
    """A value from a file as errors show it, however long or deep it is."""
    return _REPR.repr(value)


def text_field(path: str | os.PathLike[str], number: int, row: Any, name: str) -> str:
    """A field that must be there and be a non-empty string.

    Raises:
        FileError: the row has no fields, or this one is missing, empty or no string; names the row.
    """
    fields = as_record(path, number, row)
    if name not in fields:
        raise FileError(f"{path}, row {number}: no field {name!r}; it has {field_names(fields)}")
    value = fields[name]
    if not isinstance(value, str) or not value.strip():
        raise FileError(f"{path}, row {number}: field {name!r} must be a non-empty text, got {shown(value)}")
    return value


def field_names(row: dict[str, Any]) -> str:
    """Names of a row's fields as errors list them, the first twenty of them."""
    names = [shown(name) for name in row]
    return ", ".join([*names[:20], *["…"][: len(names) > 20]]) or "none"


def refuse_repeated(path: str | os.PathLike[str], number: int, name: str, answers: Iterable[str]) -> None:
    """Refuse a list of answers that holds one twice, be it written in another way (`same_answer`).

    Raises:
        FileError: naming the row and the answer.
    """
    seen: set[str] = set()
    for answer in answers:
        if (known := same_answer(answer)) in seen:
            raise FileError(f"{path}, row {number}: {name} has the answer {shown(answer)} twice")
        seen.add(known)


def same_answer(answer: str) -> str:
    """What two ways of writing one answer have in common, which differ in what nobody sees or in a full stop.

    White space, a full stop at the end, and whether an accented letter is one character or two.
    """
    words = " ".join(unicodedata.normalize("NFC", answer).split())
    return words.removesuffix(".") or words


def write_jsonl(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
