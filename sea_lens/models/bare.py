"""Passes of a model without what stands in it, for measuring the model itself."""

import contextlib
from collections.abc import Iterator

from .lens import Lens


@contextlib.contextmanager
def without_hooks(lens: Lens) -> Iterator[None]:
    """The model without what stands at its hook points or changes its logits, for the length of a context."""
    with lens.alone():
        yield from _emptied(lens)


def _emptied(lens: Lens) -> Iterator[None]:
    points = {id(point): point for point in lens.model.hook_dict.values()}
    emptied = [(point._forward_hooks, dict(point._forward_hooks)) for point in points.values()]

    def put_back() -> None:
        for functions, before in emptied:
            functions.update(before)

    try:
        for functions, _ in emptied:
            functions.clear()
        with lens.observer.set_aside():
            yield
    finally:
        try:
            put_back()
        except BaseException:
            # An interrupt: it may be done again.
            put_back()
            raise
