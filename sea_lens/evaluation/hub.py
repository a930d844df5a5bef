"""Benchmark data from the Hugging Face hub, where there is a network."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import FileError, InputError

PREFIX = "hf:"


@dataclass(frozen=True)
class HubData:
    """A data set on the hub.

    Attributes:
        name: "owner/name".
        config: its configuration, None for the default one.
        split: of the data set.
        files: the files to read, where the data set has no configuration that lists them.
    """

    name: str
    config: str | None = None
    split: str = "test"
    files: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubData":
        """From hf:owner/name, hf:owner/name:split or hf:owner/name:config:split.

        Raises:
            InputError: of another form.
        """
        name, *rest = text.removeprefix(PREFIX).split(":")
        if name.count("/") != 1 or len(rest) > 2 or not all(rest):
            raise InputError(f"{text!r}: expected hf:owner/name, hf:owner/name:split or hf:owner/name:config:split")
        return cls(name, rest[0] if len(rest) == 2 else None, rest[-1] if rest else "test")


def hub_rows(data: HubData) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, record) of a data set; fetched by `datasets`, which keeps it for the next time.

    Raises:
        FileError: it cannot be fetched.
    """
    import datasets

    try:
        if data.files is not None:
            where = f"hf://datasets/{data.name}/{data.files}"
            rows = datasets.load_dataset("json", data_files={data.split: where}, split=data.split)
        else:
            rows = datasets.load_dataset(data.name, data.config, split=data.split)
    except Exception as error:  # what can go wrong on a network has no common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileError(
            f"{data.name} cannot be fetched from the Hugging Face hub ({reason}): give a local file"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield number, dict(row)
