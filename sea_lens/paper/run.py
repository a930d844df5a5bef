"""Running analyses one after another: what is done is kept, what cannot be run says why."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .._support.versions import versions
from ..errors import SeaLensError
from .findings import Finding, Written
from .items import ItemOfPaper
from .opening import Opening
from .subject import Subject

# Bytes of a file that is not read to tell whether it is the same.
LARGE = 2**26


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Attributes:
        item: which.
        finding: what it found; None where it could not run.
        reason: why it could not run.
        was_there: whether it lay in the folder already.
    """

    item: ItemOfPaper
    finding: Written | None
    reason: str = ""
    was_there: bool = False


def run_items(
    items: Sequence[ItemOfPaper], opening: Opening, folder: Path, subject: Subject, tell: Callable[[str], None]
) -> list[Outcome]:
    """Run the items that the folder does not have yet, with the same settings and the same script, and read them all.

    An item that fails does not keep others from running.

    Args:
        items: to run.
        opening, subject: what they work on.
        folder: where findings are written; an interrupted run goes on from what is there.
        tell: is told what is done.
    """
    outcomes: list[Outcome] = []
    # A finding of other data, weights or software is another one, whatever the command line says.
    read = sorted(path for path in subject.folder.rglob("*") if path.is_file())
    weights = sorted(path for path in subject.model_folder.glob("*") if path.is_file()) if subject.model_folder else []
    common = {**opening.record, "data_sha256": _digest(read), "model_sha256": _digest(weights), "versions": versions()}
    for item in items:
        settings = {**common, "script": _digest([item.path])}
        found = Written.read(folder, item.name)
        if found is not None and found.settings == settings:
            tell(f"{item.name}: there already")
            outcomes.append(Outcome(item, found, was_there=True))
            continue
        tell(f"{item.name}: {item.question}")
        try:
            finding: Finding = item.analysis()(subject)
            finding.write(folder, item.name, settings)
        except SeaLensError as error:
            outcomes.append(Outcome(item, None, " ".join(str(error).split())))
            tell(f"{item.name}: not run: {outcomes[-1].reason}")
            continue
        outcomes.append(Outcome(item, Written.read(folder, item.name)))
    return outcomes


def _digest(paths: Sequence[Path]) -> str:
    """Of the names and the contents of files; of large ones, as weights are, of their sizes and times."""
    found = hashlib.sha256()
    for path in paths:
        told = path.stat()
        small = told.st_size <= LARGE
        found.update(f"{path.name} {told.st_size} ".encode())
        found.update(path.read_bytes() if small else str(told.st_mtime_ns).encode())
    return found.hexdigest()[:16]
