"""Running analyses one after another: what is done is kept, what cannot be run says why."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import SeaLensError
from .findings import Finding, Written
from .items import ItemOfPaper
from .opening import Opening
from .subject import Subject


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
    for item in items:
        settings = {**opening.record, "script": hashlib.sha256(item.path.read_bytes()).hexdigest()[:16]}
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
