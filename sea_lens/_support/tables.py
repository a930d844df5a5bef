"""Parts of tables, with types that are known."""

from collections.abc import Iterable
from typing import Any

import pandas as pd


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, each by the names of its columns."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict(orient="records")]


def part(table: pd.DataFrame, column: str, values: Iterable[str]) -> pd.DataFrame:
    """The rows whose cell is one of some values."""
    return pd.DataFrame(table[table[column].isin(list(values))])
