"""What sea_lens has put into a model: entered before it acts, so that whatever interrupts it can be taken out again.

A `Standing` is one group of changes that come and go together, such as the hooks of an edit. It is noted on the model's
`Observer` before its first change is made; every change can be removed from whatever state an interrupt left it in, and
removed again. `Held` binds a standing to the life of a context, and to its own: where an interrupt comes before the
first line of `__exit__`, the standing goes with the object.
"""

import asyncio
import itertools
import threading
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable

from ..errors import InputError
from .passes import Observer

Kind = TypeVar("Kind", bound="Held")

# The standings that were put in in this context or, for a task of asyncio, in the one that started it.
_numbers = itertools.count()
_of_this_context: ContextVar[frozenset[int]] = ContextVar("of_this_context", default=frozenset())


@runtime_checkable
class Change(Protocol):
    """One change of a model, such as a hook; made only in `attach`."""

    def attach(self) -> None:
        """Make the change; may be interrupted anywhere, and `remove` mends what is left then."""

    def remove(self) -> object:
        """Take this change out and leave all others; may be called before `attach` and again."""


class Standing:
    """Changes that come and go together.

    Args:
        observer: of the model.
        about: what a user is told of it, None for hooks that only measure.

    Attributes:
        changes: those that were made, or are being made.
        thread: the one thread that may use the model meanwhile.
        task: the task of asyncio that may, with those that it starts; None where every one may.
    """

    def __init__(self, observer: Observer, about: Any = None) -> None:
        self.observer, self.about = observer, about
        self.changes: list[Change] = []
        self.thread = threading.current_thread()
        self.task = _running_task()
        self._number = next(_numbers)

    def check_task(self, name: str) -> None:
        """Refuse another task of asyncio than the one that put this in, while that runs on.

        Args:
            name: of the model.

        Raises:
            InputError: naming both tasks.
        """
        if self.task is None or self.task.done() or (here := _running_task()) is self.task:
            return
        if self._number not in _of_this_context.get():
            other = "other code" if here is None else f"task {here.get_name()!r}"
            raise InputError(
                f"model {name!r} has something of sea_lens's in it (an edit, or hooks that measure) that task "
                f"{self.task.get_name()!r} put in, and {other} wants to use it meanwhile: expected one task at a time "
                f"(no await while an edit is applied, or a lock), or a copy of the model for each"
            )

    def put(self, changes: Iterable[Change]) -> None:
        """Make the changes, one after the other; none is left where one of them fails.

        Waits while another thread measures.

        Raises:
            InputError: an edit stands in the model that another thread put in.
        """
        self.observer.check_user()
        if self.task is not None:
            _of_this_context.set(_of_this_context.get() | {self._number})
        try:
            self.observer.enter(self)
            for change in changes:
                self.changes.append(change)
                change.attach()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take all of it out; may be called twice."""
        try:
            self._take_out()
        except BaseException:
            # An interrupt: everything may be removed again.
            self._take_out()
            raise

    def _take_out(self) -> None:
        for change in reversed(self.changes):
            change.remove()
        self.observer.leave(self)


def _running_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


class Held:
    """A standing for the length of a context, or for as long as something holds this object."""

    # Until there is a standing, there is nothing to remove.
    _kept = True

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self._kept = False

    def keep(self: Kind) -> Kind:
        """Let it stand until it is removed, whether or not something holds this object."""
        self._kept = True
        self.standing.task = None
        return self

    def remove(self) -> None:
        """Take it out; may be called twice."""
        self.standing.remove()
        self._kept = True

    def __reduce_ex__(self, _: object) -> NoReturn:
        # One that was copied would take it out as well.
        raise InputError("what stands in a model cannot be copied or pickled: expected the edit itself, which can be")

    def __enter__(self: Kind) -> Kind:
        self._kept = False
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.remove()
        finally:
            self.standing.remove()

    def __del__(self) -> None:
        if not self._kept:
            self.standing.remove()
