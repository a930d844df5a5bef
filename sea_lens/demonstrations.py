"""Demonstrations, what an edit is fitted from, and contrasts, what its effect is measured on."""

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar, overload

from ._support.rows import has_half_character, read_jsonl, text_field, write_jsonl
from ._support.storage import write_atomically
from .errors import DemonstrationError, FileError


@dataclass(frozen=True)
class Demonstration:
    """Three full texts about one prompt.

    Attributes:
        neutral: the prompt.
        positive: prompt and wanted completion, such as the true answer.
        negative: prompt and unwanted completion, such as the hallucinated one.
    """

    neutral: str
    positive: str
    negative: str

    def check(self, what: str) -> None:
        """Refuse empty texts, and a positive equal to its negative."""
        _refuse_empty(self, what)
        if self.positive == self.negative:
            raise DemonstrationError(f"{what}: positive and negative are the same text {self.positive!r}")


@dataclass(frozen=True)
class Contrast:
    """A prompt with two completions, appended verbatim (begin them with a space where the language needs one).

    Attributes:
        prompt: the text before.
        target: the completion that the edit should make likelier.
        foil: the one that it should make less likely.
    """

    prompt: str
    target: str
    foil: str

    def check(self, what: str) -> None:
        """Refuse empty texts, and a target equal to its foil."""
        _refuse_empty(self, what)
        if self.target == self.foil:
            raise DemonstrationError(f"{what}: target and foil are the same text {self.target!r}")


def _refuse_empty(item: Demonstration | Contrast, what: str) -> None:
    for name, text in asdict(item).items():
        if not isinstance(text, str) or not text.strip():
            raise DemonstrationError(f"{what}: {name} is empty" if text == "" else f"{what}: {name} is {text!r}")
        if has_half_character(text):
            raise DemonstrationError(f"{what}: {name} holds half a character (a lone surrogate)")


Item = TypeVar("Item", Demonstration, Contrast)


class _Items(Sequence[Item], Generic[Item]):
    """An immutable, checked list of demonstrations or contrasts.

    Attributes:
        names: what errors call each of them: its file and row, where it was read from one.
    """

    _item_type: type[Any]

    def __init__(self, items: Iterable[Any], names: Iterable[str] | None = None) -> None:
        self._items: tuple[Item, ...] = tuple(items)
        kind = self._item_type.__name__
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
    def from_jsonl(cls, path: str | os.PathLike[str], limit: int | None = None):
        """Read JSON Lines whose rows have this kind's three fields; other fields are passed over.

        Args:
            path: the file.
            limit: read at most this many rows.

        Raises:
            FileError: missing, malformed, empty; names the row.
        """
        names = list(cls._item_type.__dataclass_fields__)
        return cls.from_rows(
            path,
            read_jsonl(path),
            lambda number, row: cls._item_type(*(text_field(path, number, row, name) for name in names)),
            limit,
        )

    @classmethod
    def from_rows(
        cls,
        path: str | os.PathLike[str],
        rows: Iterable[tuple[int, dict[str, Any]]],
        convert: Callable[[int, dict[str, Any]], Item | Iterable[Item]],
        limit: int | None = None,
    ):
        """Convert numbered rows of a file, each to one or several items, with errors that name file and row."""
        items: list[Item] = []
        names: list[str] = []
        for number, row in rows:
            converted = convert(number, row)
            for item in converted if isinstance(converted, Iterable) else (converted,):
                names.append(f"{path}, row {number}")
                try:
                    item.check(names[-1])
                except DemonstrationError as error:
                    raise FileError(str(error)) from None
                items.append(item)
            if limit is not None and len(items) >= limit:
                break
        if not items:
            raise FileError(f"{path} has no row that a {cls._item_type.__name__.lower()} can be made from")
        return cls(items[:limit], names[:limit])

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write JSON Lines that `from_jsonl` reads."""
        write_atomically(path, write_jsonl(asdict(item) for item in self._items))

    @property
    def digest(self) -> str:
        """Short hash of the content, which says in a result what it was computed from."""
        return hashlib.sha256(write_jsonl(asdict(item) for item in self._items).encode()).hexdigest()[:16]

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> "_Items[Item]": ...
    def __getitem__(self, index: int | slice) -> "Item | _Items[Item]":
        if isinstance(index, slice):
            return type(self)(self._items[index], self.names[index])
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
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
        DemonstrationError: none at all, an empty text, or a positive equal to its negative; names the index.
    """

    _item_type = Demonstration

    def shuffled(self, seed: int) -> "Demonstrations":
        """Positive and negative of each swapped by the toss of a coin, so that nothing tells the two sets apart."""
        rng = random.Random(seed)
        swapped = (
            Demonstration(item.neutral, item.negative, item.positive) if rng.random() < 0.5 else item for item in self
        )
        return Demonstrations(swapped, self.names)

    @classmethod
    def from_halueval(cls, path: str | os.PathLike[str], **options: Any) -> "Demonstrations":
        """Demonstrations from HaluEval's QA file; options as in `sea_lens.readers.halueval`."""
        from .readers import halueval

        return halueval(path, **options)

    @classmethod
    def from_truthfulqa(cls, path: str | os.PathLike[str], **options: Any) -> "Demonstrations":
        """Demonstrations from TruthfulQA's CSV or multiple-choice JSON; options as in `sea_lens.readers.truthfulqa`."""
        from .readers import truthfulqa

        return truthfulqa(path, **options)

    @classmethod
    def from_bbq(cls, path: str | os.PathLike[str], **options: Any) -> "Demonstrations":
        """Demonstrations from a BBQ file; options as in `sea_lens.readers.bbq`."""
        from .readers import bbq

        return bbq(path, **options)


class Contrasts(_Items[Contrast]):
    """An immutable, checked list of `Contrast`.

    Raises:
        DemonstrationError: none at all, an empty text, or a target equal to its foil; names the index.
    """

    _item_type = Contrast
