"""Digests of questions, by which overlap between what was fitted, chosen and tested is noticed."""

import hashlib
import unicodedata
from collections.abc import Iterable


def question_digests(texts: Iterable[str]) -> frozenset[str]:
    """A short digest of each text, the same for texts that differ only in case, white space or punctuation at the end.

    Args:
        texts: questions or prompts, of any length.

    Returns:
        16 hexadecimal digits for each different text.

    Example:
        >>> from sea_lens.texts.digests import question_digests
        >>> question_digests(["Who is  it?"]) == question_digests(["who is it ?", "Who is it."])
        True
    """
    return frozenset(
        hashlib.sha256(normalised(text).encode("utf-8", "surrogatepass")).hexdigest()[:16] for text in texts
    )


def normalised(text: str) -> str:
    """The text without what does not make another question of it: case, white space, punctuation at the end."""
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    end = len(words)
    while end and (words[end - 1] == " " or unicodedata.category(words[end - 1]).startswith("P")):
        end -= 1
    # A text of nothing but punctuation is what it is.
    return words[:end] or words
