"""Reading rows of text files, with errors that name the file and the row (counted from 1)."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import FileError


def read_text(path: str | os.PathLike[str]) -> str:
    """A UTF-8 text file, a byte order mark left out.

    Raises:
        FileError: missing, unreadable or not UTF-8.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not a UTF-8 text file (byte {error.start})") from error


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, object) of each JSON line; empty lines are counted and passed over.

    Lines end at a newline only: JSON strings may hold other Unicode line separators.

    Raises:
        FileError: as `read_text`, a row that is not a JSON object (names it), or no rows at all.
    """
    found = False
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise FileError(f"{path}, row {number}: not JSON ({error.msg}, column {error.colno})") from error
        except (ValueError, RecursionError) as error:
            raise FileError(f"{path}, row {number}: JSON that Python cannot hold ({error})") from error
        if not isinstance(row, dict):
            raise FileError(f"{path}, row {number}: expected a JSON object, got {type(row).__name__}")
        found = True
        yield number, row
    if not found:
        raise FileError(f"{path} has no rows")


# The key of the fields beyond the header; no column is called this.
_MORE = "\0"


def read_csv(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, record) of each CSV record under a header row; the first record is row 1.

    Raises:
        FileError: as `read_text`, not CSV, two columns of one name, no header, no records, or a record with more or
            fewer fields than the header; names the row where there is one.
    """
    csv.field_size_limit(2**31 - 1)
    # Lines end at newlines only: a field may hold other Unicode line separators.
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True, restkey=_MORE, restval=None)
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
        FileError: as `read_text`, or not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FileError(f"{path}: not JSON ({error.msg}, line {error.lineno})") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: JSON that Python cannot hold ({error})") from error


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
    """(row number, record) of a file by what its name ends in: .csv, .json (a list of objects), else JSON Lines.

    Raises:
        FileError: a missing or malformed file; names the row where there is one.
    """
    if os.fspath(path).endswith(".csv"):
        yield from read_csv(path)
    elif os.fspath(path).endswith(".json"):
        for number, row in read_json_list(path):
            if not isinstance(row, dict):
                raise FileError(f"{path}, row {number}: expected an object, got {type(row).__name__}")
            yield number, row
    else:
        yield from read_jsonl(path)


def has_half_character(text: str) -> bool:
    """Whether a text holds a lone surrogate: JSON can hold one, UTF-8 text and tokenizers cannot."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def text_field(path: str | os.PathLike[str], number: int, row: dict[str, Any], name: str) -> str:
    """A field that must be there and be a non-empty string.

    Raises:
        FileError: it is missing, empty or no string; names the row.
    """
    if name not in row:
        raise FileError(f"{path}, row {number}: no field {name!r}; it has {', '.join(map(repr, row)) or 'none'}")
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise FileError(f"{path}, row {number}: field {name!r} must be a non-empty text, got {value!r}")
    return value


def write_jsonl(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
