"""Rows of data sets of the `datasets` library, by name from the Hugging Face hub or at hand, one at a time.

The library streams them and cuts them into shards. Where several processes share a run, each reads some shards, and all
get the rows in the order that one process would read them in.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from .._support.processes import count, shared
from ..errors import DemonstrationError, FileError, InputError
from .prompts import check_placeholders


def dataset_rows(
    source: Any, config: str | None, split: str, limit: int | None
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number from 1, row) of the first rows of a data set.

    Args:
        source: a name on the hub, a data set of the `datasets` library, or any iterable of rows.
        config, split: of a name on the hub.
        limit: at most so many rows.

    Raises:
        FileError: it cannot be fetched.
        InputError: no data set.
    """
    rows = _from_hub(source, config, split) if isinstance(source, str) else source
    if not isinstance(rows, Iterable) or isinstance(rows, Mapping):
        raise InputError(f"expected the name of a data set or rows, got {type(source).__name__}")
    try:
        for number, row in enumerate(islice(_in_order(rows, limit), limit), start=1):
            if not isinstance(row, Mapping):
                raise DemonstrationError(f"row {number}: expected an object with fields, got {type(row).__name__}")
            yield number, row
    except OSError as error:
        raise FileError(f"{source} cannot be read: {error}") from error


def _from_hub(name: str, config: str | None, split: str) -> Any:
    # Imported here, since it takes long, and few need it.
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # what can go wrong on a network has no common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileError(f"{name} cannot be fetched from the Hugging Face hub ({reason}): give rows") from error


def _in_order(rows: Any, limit: int | None) -> Iterator[Any]:
    """The rows; those of a data set in shards are shared out between the processes of a run."""
    shards = getattr(rows, "num_shards", 1)
    if count() == 1 or shards == 1 or not hasattr(rows, "shard"):
        yield from rows
        return
    left = limit
    for start in range(0, shards, count()):
        some = range(start, min(start + count(), shards))
        for found in shared(some, lambda number, most=left: list(islice(rows.shard(shards, number), most))):
            yield from found
            left = None if left is None else left - min(left, len(found))
        if left == 0:
            return


def filled(template: str, name: str) -> Callable[[str, Mapping[str, Any]], str]:
    """What fills a format string with the fields of a row, given what errors call the row.

    Args:
        template: such as "Q: {question} A: {answer}".
        name: of the template, in errors.
    """
    checked: set[frozenset[str]] = set()

    def fill(what: str, row: Mapping[str, Any]) -> str:
        columns = frozenset(map(str, row))
        if columns not in checked:
            check_placeholders(name, template, columns)
            checked.add(columns)
        fields = {column: _text(what, column, value) for column, value in row.items() if f"{{{column}" in template}
        return template.format(**fields)

    return fill


def _text(what: str, column: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise DemonstrationError(f"{what}: field {column!r} is {type(value).__name__}, expected a text or a number")
    return str(value)
