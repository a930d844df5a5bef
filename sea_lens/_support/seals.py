"""Seals: a SHA-256 over the bytes of a file or a line, written inside them.

It is taken with 64 zeros in its own place, so that every byte counts: the digest's own, and those that no parser looks
at. Its place is behind all content that could look the same.
"""

import hashlib

NO_SEAL = "0" * 64


class Seal:
    """The digest of bytes that come in pieces and have `NO_SEAL`, at its last place, where it will stand."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, piece: bytes | memoryview) -> None:
        """Take in what comes next."""
        self._digest.update(piece)

    @property
    def text(self) -> str:
        """The digest, 64 digits of base 16."""
        return self._digest.hexdigest()

    def put_into(self, piece: bytes) -> bytes:
        """The piece with the digest in its place.

        Raises:
            ValueError: it has no place for it.
        """
        return _exchanged(piece, NO_SEAL, self.text)


def find_seal(piece: bytes, seal: str) -> bytes:
    """The piece as it was before the seal was put into it.

    Raises:
        ValueError: it does not have this seal.
    """
    return _exchanged(piece, seal, NO_SEAL)


def _exchanged(piece: bytes, old: str, new: str) -> bytes:
    place = piece.rfind(old.encode("ascii", "replace"))
    if place < 0 or len(old) != len(new):
        raise ValueError("it has no place for its sha256")
    return piece[:place] + new.encode() + piece[place + len(new) :]


def sealed(content: bytes) -> bytes:
    """Bytes that hold `NO_SEAL`, with their seal in its last place."""
    seal = Seal()
    seal.update(content)
    return seal.put_into(content)


def has_seal(content: bytes, seal: str) -> bool:
    """Whether bytes are what they were when this seal was put into them."""
    own = Seal()
    try:
        own.update(find_seal(content, seal))
    except ValueError:
        return False
    return own.text == seal
