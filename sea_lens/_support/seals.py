"""Seals: a SHA-256 over the bytes of a file or a line, written inside them.

It is taken with 64 zeros in its own place, so that every byte counts: the digest's own, and those that no parser looks
at.
"""

import hashlib

NO_SEAL = "0" * 64


class Seal:
    """The digest of bytes that come in pieces and have `NO_SEAL` where it will stand."""

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
            ValueError: it has not just one place for it.
        """
        if piece.count(NO_SEAL.encode()) != 1:
            raise ValueError("expected one place for a sha256")
        return piece.replace(NO_SEAL.encode(), self.text.encode())


def find_seal(piece: bytes, seal: str) -> bytes:
    """The piece as it was before the seal was put into it.

    Raises:
        ValueError: it does not have this seal in just one place.
    """
    digest = seal.encode("ascii", "replace")
    if len(digest) != len(NO_SEAL) or piece.count(digest) != 1:
        raise ValueError("its sha256 does not stand in one place")
    return piece.replace(digest, NO_SEAL.encode())


def sealed(content: bytes) -> bytes:
    """Bytes that hold `NO_SEAL` once, with their seal in its place."""
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
