"""Checked lists of demonstrations and of contrasts, made in memory or read from files."""

import hashlib
import itertools
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Generic, TypeVar, overload

from .._support.arguments import as_integer
from .._support.files import write_atomically
from .._support.text_rows import read_jsonl, text_field, write_jsonl
from ..errors import DemonstrationError, FileError
from . import readers
from .datasets import dataset_rows, filled
from .items import Contrast, Demonstration
from .overlap import packed_questions

One = TypeVar("One", Demonstration, Contrast)


class _Items(Sequence[One], Generic[One]):
    """An immutable, checked list of demonstrations or contrasts.

    Attributes:
        names: what errors call each of them: its file and row, where it was read from one.
    """

    _item_type: type[Any]

    def __init__(self, items: Iterable[Any], names: Iterable[str] | None = None) -> None:
        kind = self._item_type.__name__
        if not isinstance(items, Iterable):
            raise DemonstrationError(f"expected {kind.lower()}s, a list of {kind}, got {type(items).__name__}")
        self._items: tuple[One, ...] = tuple(items)
        self.names = (
            tuple(names) if names is not None else tuple(f"{kind.lower()} {i}" for i in range(len(self._items)))
        )
        for name, item in zip(self.names, self._items, strict=True):
            if not isinstance(item, self._item_type):
                raise DemonstrationError(f"{name}: expected a {kind}, got {type(item).__name__}")
            item.check(name)
        if not self._items:
            raise DemonstrationError(f"no {kind.lower()}s: expected at least one")

    @classmethod
    def of(cls, items: Iterable[Any]):
        """The list itself where it is one of this kind, else a new one of these items."""
        return items if isinstance(items, cls) else cls(items)

    @classmethod
    def from_jsonl(cls, path: str | os.PathLike[str], limit: int | None = None):
        """Read JSON Lines whose rows have this kind's three fields; other fields are passed over.

        Args:
            path: the file.
            limit: read at most this many rows.

        Raises:
            FileError: missing, malformed, empty, or an item that cannot be used; names the row.
            InputError: a limit below 1.
        """
        names = list(cls._item_type.__dataclass_fields__)
        rows = read_jsonl(path)
        items = (
            (number, cls._item_type(*(text_field(path, number, row, name) for name in names))) for number, row in rows
        )
        return cls._numbered(path, items, limit)

    @classmethod
    def _numbered(cls, path: str | os.PathLike[str], numbered: Iterable[tuple[int, Any]], limit: int | None):
        """The list of the first items of a file; errors name the file and the row."""
        first = None if limit is None else as_integer(limit, "limit", least=1)
        items: list[Any] = []
        names: list[str] = []
        for number, item in itertools.islice(numbered, first):
            names.append(f"{path}, row {number}")
            try:
                item.check(names[-1])
            except DemonstrationError as error:
                raise FileError(str(error)) from None
            items.append(item)
        if not items:
            raise FileError(f"{path} has no row that a {cls._item_type.__name__.lower()} can be made from")
        return cls(items, names)

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write JSON Lines that `from_jsonl` reads.

        Raises:
            FileError: the file cannot be written.
        """
        write_atomically(path, write_jsonl(asdict(item) for item in self._items))

    @property
    def record(self) -> dict[str, Any]:
        """How many they are, the digest of their content, and digests of their questions; for provenance."""
        first = next(iter(self._item_type.__dataclass_fields__))
        questions = packed_questions(getattr(item, first) for item in self._items)
        return {"n": len(self._items), "sha256": self.digest, "questions": questions}

    @property
    def digest(self) -> str:
        """Short hash of the content, which says in a result what it was computed from."""
        found = hashlib.sha256()
        for item in self._items:
            found.update(write_jsonl([asdict(item)]).encode())
        return found.hexdigest()[:16]

    @overload
    def __getitem__(self, index: int) -> One: ...
    @overload
    def __getitem__(self, index: slice) -> "_Items[One]": ...
    def __getitem__(self, index: int | slice) -> "One | _Items[One]":
        if isinstance(index, slice):
            return type(self)(self._items[index], self.names[index])
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[One]:
        return iter(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Items) and self._items == other._items

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} {self._item_type.__name__.lower()}s, first {self._items[0]})"


class Demonstrations(_Items[Demonstration]):
    """An immutable, checked list of `Demonstration`.

    Raises:
        DemonstrationError: none at all, an empty text, a lone surrogate, or a positive equal to its negative; names
            the index.

    Example:
        >>> demonstrations = sl.Demonstrations([sl.Demonstration("2 + 2 =", "2 + 2 = 4", "2 + 2 = 5")])
        >>> len(demonstrations), demonstrations[0].positive
        (1, '2 + 2 = 4')
    """

    _item_type = Demonstration

    def picked(self, indices: Iterable[int]) -> "Demonstrations":
        """The demonstrations with these indices, each as often as it is named."""
        chosen = list(indices)
        return Demonstrations([self[i] for i in chosen], [self.names[i] for i in chosen])

    def shuffled(self, seed: int) -> "Demonstrations":
        """The demonstrations with positive and negative of each swapped by the toss of a coin (docs/method.md 6.8).

        Nothing then tells the set of positive texts from that of negative ones.
        """
        rng = random.Random(seed)
        swapped = (
            Demonstration(item.neutral, item.negative, item.positive) if rng.random() < 0.5 else item for item in self
        )
        return Demonstrations(swapped, self.names)

    @classmethod
    def from_dataset(
        cls,
        source: Any,
        *,
        neutral: str,
        positive: str,
        negative: str,
        config: str | None = None,
        split: str = "train",
        limit: int | None = None,
    ) -> "Demonstrations":
        """Demonstrations from a data set of Hugging Face's `datasets`, or from any rows, read one at a time.

        Args:
            source: a name on the Hugging Face hub, streamed from there; a `Dataset` or `IterableDataset`; or any
                iterable of mappings.
            neutral, positive, negative: format strings over the fields of a row, which make the three full texts.
            config, split: of a name on the hub.
            limit: use at most this many rows, the first ones.

        Raises:
            InputError: a template that uses no field or one that rows do not have, a limit below 1, or no data set.
            FileError: a data set that cannot be fetched.
            DemonstrationError: a row that no demonstration can be made from; names it.

        Example:
            >>> rows = [{"question": "2 + 2 =", "right": "4", "wrong": "5"}]
            >>> demonstrations = sl.Demonstrations.from_dataset(
            ...     rows, neutral="{question}", positive="{question} {right}", negative="{question} {wrong}"
            ... )
            >>> demonstrations[0].negative
            '2 + 2 = 5'
        """
        first = None if limit is None else as_integer(limit, "limit", least=1)
        templates = {"neutral": neutral, "positive": positive, "negative": negative}
        fills = [filled(template, name) for name, template in templates.items()]
        name = source if isinstance(source, str) else "data set"
        items, names = [], []
        for number, row in dataset_rows(source, config, split, first):
            names.append(f"{name}, row {number}")
            items.append(Demonstration(*(fill(names[-1], row) for fill in fills)))
        return cls(items, names)

    @classmethod
    def from_halueval(
        cls, path: str | os.PathLike[str], *, limit: int | None = None, **options: Any
    ) -> "Demonstrations":
        """Demonstrations from HaluEval's QA file; options as in `sea_lens.texts.readers.halueval`.

        Args:
            path: the file.
            limit: use at most this many demonstrations, the first ones.
            options: templates and choices of the reader.

        Raises:
            FileError: a missing or malformed file; names the row.
            InputError: a limit below 1, or as the reader.
        """
        return cls._numbered(path, readers.halueval(path, **options), limit)

    @classmethod
    def from_truthfulqa(
        cls, path: str | os.PathLike[str], *, limit: int | None = None, **options: Any
    ) -> "Demonstrations":
        """Demonstrations from TruthfulQA's CSV or JSON; options as in `sea_lens.texts.readers.truthfulqa`.

        Args:
            path: the file.
            limit: use at most this many demonstrations, the first ones.
            options: templates and choices of the reader.

        Raises:
            FileError: a missing or malformed file; names the row.
            InputError: a limit below 1, or as the reader.
        """
        return cls._numbered(path, readers.truthfulqa(path, **options), limit)

    @classmethod
    def from_bbq(cls, path: str | os.PathLike[str], *, limit: int | None = None, **options: Any) -> "Demonstrations":
        """Demonstrations from a BBQ file; options as in `sea_lens.texts.readers.bbq`.

        Args:
            path: the file.
            limit: use at most this many demonstrations, the first ones.
            options: templates and choices of the reader.

        Raises:
            FileError: a missing or malformed file; names the row.
            InputError: a limit below 1, or as the reader.
        """
        return cls._numbered(path, readers.bbq(path, **options), limit)


class Contrasts(_Items[Contrast]):
    """An immutable, checked list of `Contrast`.

    Raises:
        DemonstrationError: none at all, an empty text, a lone surrogate, or a target equal to its foil; names the
            index.

    Example:
        >>> sl.Contrasts([sl.Contrast("2 + 2 =", " 4", " 5"), sl.Contrast("2 + 3 =", " 5", " 5")])
        Traceback (most recent call last):
        sea_lens.errors.DemonstrationError: contrast 1: target and foil are the same text ' 5'
    """

    _item_type = Contrast
