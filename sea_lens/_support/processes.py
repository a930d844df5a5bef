"""Several processes of one run, as `torchrun` starts them: each does its share, and all know the result.

Every process runs the same program on the same arguments. Where work falls into parts (batches of texts, layers, parts
of a benchmark) each does every n-th part (`mine`), and what they found is put together on all of them, so that they go
on alike. The first alone writes and prints. An error of one is raised in all. Without `torchrun` there is one process,
which does everything.

Only a command starts this (`start`): a process group that a user's own program has made is left alone.
"""

import atexit
import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import InputError, SeaLensError

if TYPE_CHECKING:
    from torch import Tensor

Part = TypeVar("Part")
Found = TypeVar("Found")

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# How long a process waits for another one at most: a model of 70 billion parameters is slow to load from a cold disk.
_PATIENCE = datetime.timedelta(hours=2)
# Which process this is, and how many there are.
_place = (0, 1)


class LostProcessError(SeaLensError):
    """Another process of the run has ended, or cannot be reached."""


def start() -> None:
    """Join the processes that `torchrun` started, if it started this one.

    Raises:
        InputError: `torchrun`'s variables are there in part, or say something impossible.
    """
    global _place
    given = {name: os.environ.get(name) for name in _VARIABLES}
    if given["RANK"] is None or given["WORLD_SIZE"] in (None, "1"):
        return
    try:
        rank, world = int(given["RANK"]), int(given["WORLD_SIZE"] or 1)
    except ValueError:
        rank, world = -1, 0
    if None in given.values() or not 0 <= rank < world:
        raise InputError(f"the variables of torchrun are {given}: expected all of them, as torchrun sets them")
    # Imported here, since commands look at their arguments before anything large.
    import torch

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        # Gloo goes on carrying what is on the CPU.
        backend = "cpu:gloo,cuda:nccl"
    with _reached():
        torch.distributed.init_process_group(backend, timeout=_PATIENCE)
    atexit.register(_leave)
    _place = rank, world


def _leave() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_first() -> bool:
    """Whether this is the process that writes and prints; always so where there is one alone."""
    return _place[0] == 0


def count() -> int:
    """How many processes there are."""
    return _place[1]


def mine(parts: Sequence[Part]) -> Sequence[Part]:
    """The parts that this process does."""
    rank, world = _place
    return parts[rank::world]


def together(do: Callable[[], Found]) -> list[Found]:
    """What each process finds, by its number, on all of them.

    Raises:
        LostProcessError: one has ended.
        Exception: what the first process that failed has raised, in all of them.
    """
    if _place[1] == 1:
        return [do()]
    own: tuple[Any, Exception | None]
    try:
        own = do(), None
    except Exception as error:
        own = None, error
    import torch

    of_all: list[Any] = [None] * _place[1]
    with _reached():
        torch.distributed.all_gather_object(of_all, own)
    for _, error in of_all:
        if error is not None:
            raise error
    return [found for found, _ in of_all]


def shared(parts: Sequence[Part], do: Callable[[Part], Found]) -> list[Found]:
    """What is found for each part, each of them done by one process; errors as in `together`."""
    of_all = together(lambda: [do(part) for part in mine(parts)])
    return [of_all[place % _place[1]][place // _place[1]] for place in range(len(parts))]


def of_first(do: Callable[[], Found]) -> Found:
    """What the first process finds, on all of them. Errors: `together`."""
    return together(lambda: do() if is_first() else None)[0]  # type: ignore[return-value]


def summed(do: "Callable[[], Sequence[Tensor]]") -> None:
    """Do this process's share, and add up what it gives, in place, over all processes; errors as in `together`."""
    kept: list[Any] = []
    together(lambda: kept.extend(do()))
    if _place[1] > 1:
        import torch

        with _reached():
            for tensor in kept:
                torch.distributed.all_reduce(tensor)


def wait() -> None:
    """Wait until all processes have come here."""
    together(lambda: None)


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    """Failures to reach another process, as an error of sea_lens's."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LostProcessError(f"another process of this run has ended, or cannot be reached ({reason})") from error
