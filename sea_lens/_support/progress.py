"""Progress bars with the time left."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from .processes import is_first

Step = TypeVar("Step")


def tracked(steps: Iterable[Step], description: str, total: int, *, show: bool = True) -> Iterator[Step]:
    """The steps one by one under a progress bar on stderr, in a terminal or a notebook; elsewhere without one."""
    if not (show and is_first()):
        yield from steps
        return
    # Imported here, since most of rich is not needed to import the package.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield from steps
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(steps, total=total, description=description)
