"""Which questions two sets of texts share, whatever prompt each of them stands in (docs/method.md 6.11)."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from .digests import question_digests

# Labels of a question and of the answer that is to follow it, which templates put around the question itself.
_BEFORE = re.compile(r"^\s*(?:q|question|query|user|human|problem)\s*[:：]\s*", re.IGNORECASE)
_BEHIND = re.compile(r"\s+(?:a|answer|assistant|response)\s*[:：]\s*$", re.IGNORECASE)
# A line of nothing but such a label.
_LABEL = re.compile(r"\s*(?:q|question|query|user|human|problem|a|answer|assistant|response)\s*[:：]\s*", re.IGNORECASE)
_SHORTEST_LINE = 12
# As many digests as a file of an edit should carry; of more, those that sort first, a sample drawn by chance.
MOST = 20_000
_DIGITS = 16


# Marks a question that was cut out of what all texts of its set have around it. It is compared with whole questions
# alone: of "the capital of Peru" and "the currency of Peru", each cut in a set of its kind, the same could be left.
_CUT = "\0"


def question_views(texts: Sequence[str]) -> Iterator[list[str]]:
    """Each text without the labels around it and in it, and each of its lines that is its own.

    A line that stands in more than half of the different texts is the prompt's and not the question's. One that stands
    in several, as a context or a question of BBQ does, is no question alone, but is one together with the text's other
    lines. A line of fewer than 12 characters tells nothing.

    Yields:
        The forms of each text's question, of which digests are taken.
    """
    # All forms of all texts would be several times as large as the texts.
    different = set(map(frozenset, map(_lines, texts)))
    shared, half = Counter(line for own in different for line in own), max(len(different) / 2, 1)
    for text in texts:
        own = _lines(text)
        yield [
            _bare(text),
            " ".join(own),
            " ".join(line for line in own if shared[line] <= half),
            *(line for line in own if len(line) >= _SHORTEST_LINE and shared[line] == 1),
        ]


def _lines(text: str) -> list[str]:
    return [_bare(line) for line in text.splitlines() if line.strip() and not _LABEL.fullmatch(line)]


def packed_questions(texts: Iterable[str]) -> str:
    """The digests of all texts as one string of hexadecimal digits, for a file's header."""
    texts = list(texts)
    views = itertools.chain.from_iterable(question_views(texts))
    found = _digests(itertools.chain(views, (_CUT + inner for inner in _inner(texts) if inner)))
    return "".join(sorted(found)[:MOST])


def unpacked_questions(packed: object) -> frozenset[str]:
    """Digests from `packed_questions`; none from what is no such string."""
    if not isinstance(packed, str) or len(packed) % _DIGITS:
        return frozenset()
    return frozenset(packed[start : start + _DIGITS] for start in range(0, len(packed), _DIGITS))


def n_shared(texts: Sequence[str], digests: frozenset[str]) -> int:
    """How many of the texts ask one of the questions with these digests."""
    if not digests:
        return 0
    asked = zip(question_views(texts), _inner(texts), strict=True)
    return sum(
        not _digests([*views, inner, *(_CUT + view for view in views)]).isdisjoint(digests) for views, inner in asked
    )


def _digests(views: Iterable[str]) -> frozenset[str]:
    return question_digests(view for view in views if view.strip(_CUT))


def _inner(texts: Sequence[str]) -> Iterator[str]:
    """What is left of each text without the words that all of them begin and end with; nothing where it is little."""
    first, last = _ends(text.split() for text in texts)
    before = _n_common(first, last)
    behind = _n_common(*_ends(text.split()[before:][::-1] for text in texts))
    cut = before + behind > 0 and first != last
    for text in texts:
        words = text.split() if cut else []
        inner = " ".join(words[before : len(words) - behind])
        yield inner if len(inner) >= _SHORTEST_LINE else ""


def _ends(words: Iterable[list[str]]) -> tuple[list[str], list[str]]:
    """The first and the last in order, as if they were sorted; empty where there are none."""
    first = last = next(words := iter(words), [])
    for own in words:
        first, last = min(first, own), max(last, own)
    return first, last


def _n_common(first: Sequence[str], second: Sequence[str]) -> int:
    """How many words the first and the last of a sorted list, and so all of it, begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _bare(text: str) -> str:
    return _BEHIND.sub("", _BEFORE.sub("", text, count=1), count=1).strip() or text
