"""Which questions two sets of texts share, whatever prompt each of them stands in (docs/method.md 6.11)."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

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


def question_views(texts: Sequence[str]) -> list[frozenset[str]]:
    """Digests of each text without the labels around it and in it, and of each of its lines that is its own.

    A line that stands in more than half of the different texts is the prompt's and not the question's. One that stands
    in several, as a context or a question of BBQ does, is no question alone, but is one together with the text's other
    lines. A line of fewer than 12 characters tells nothing.
    """
    lines = [
        [_bare(line) for line in text.splitlines() if line.strip() and not _LABEL.fullmatch(line)] for text in texts
    ]
    different = set(map(frozenset, lines))
    shared = Counter(line for own in different for line in own)
    views = [
        [
            _bare(text),
            " ".join(own),
            " ".join(line for line in own if shared[line] <= max(len(different) / 2, 1)),
            *(line for line in own if len(line) >= _SHORTEST_LINE and shared[line] == 1),
        ]
        for text, own in zip(texts, lines, strict=True)
    ]
    return [question_digests(view for view in of_text if view) for of_text in views]


def packed_questions(texts: Iterable[str]) -> str:
    """The digests of all texts as one string of hexadecimal digits, for a file's header."""
    found = frozenset[str]().union(*question_views(list(texts)))
    return "".join(sorted(found)[:MOST])


def unpacked_questions(packed: object) -> frozenset[str]:
    """Digests from `packed_questions`; none from what is no such string."""
    if not isinstance(packed, str) or len(packed) % _DIGITS:
        return frozenset()
    return frozenset(packed[start : start + _DIGITS] for start in range(0, len(packed), _DIGITS))


def n_shared(texts: Sequence[str], digests: frozenset[str]) -> int:
    """How many of the texts ask one of the questions with these digests."""
    return sum(not views.isdisjoint(digests) for views in question_views(texts)) if digests else 0


def _bare(text: str) -> str:
    return _BEHIND.sub("", _BEFORE.sub("", text, count=1), count=1).strip() or text
