"""Running analyses one after another: what is done is kept, what cannot be run says why."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._support.versions import versions
from ..errors import SeaLensError
from .findings import Finding, Written
from .items import ITEMS, ItemOfPaper
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
        broken: whether it ended in an error that is none of the user's.
    """

    item: ItemOfPaper
    finding: Written | None
    reason: str = ""
    was_there: bool = False
    broken: bool = False


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

    Returns:
        What became of them, and of other items that the folder has with the same settings.
    """
    outcomes: list[Outcome] = []
    common = _settings(opening, subject)
    for item in ITEMS:
        settings = {**common, "script": _digest([item.path])}
        found = Written.read(folder, item.name)
        if found is not None and found.settings == settings:
            if item in items:
                tell(f"{item.name}: there already")
            outcomes.append(Outcome(item, found, was_there=True))
        elif item in items:
            tell(f"{item.name}: {item.question}")
            outcomes.append(_run(item, subject, folder, settings))
            if outcomes[-1].reason:
                tell(f"{item.name}: not run: {outcomes[-1].reason}")
    return outcomes


def _run(item: ItemOfPaper, subject: Subject, folder: Path, settings: Mapping[str, Any]) -> Outcome:
    try:
        finding: Finding = item.analysis()(subject)
        if not len(finding.table):
            return Outcome(item, None, "; ".join(finding.not_run) or finding.paragraph)
        finding.write(folder, item.name, settings)
    except SeaLensError as error:
        return Outcome(item, None, " ".join(str(error).split()))
    except Exception as error:  # one item's fault, or a machine without room for it, must not take the others away
        logging.getLogger(__name__).debug("%s", item.name, exc_info=True)
        return Outcome(item, None, f"{type(error).__name__}: {' '.join(str(error).split())}", broken=True)
    return Outcome(item, Written.read(folder, item.name))


def _settings(opening: Opening, subject: Subject) -> dict[str, Any]:
    """What a finding depends on: one of other data, weights or software is another, whatever the command line says."""
    read = sorted(path for path in subject.folder.rglob("*") if path.is_file())
    models = [subject.model_folder, *map(Path, (*opening.models, *opening.judge))]
    weights = [path for one in models if one is not None and one.is_dir() for path in sorted(one.glob("*"))]
    code = sorted(Path(__file__).parents[1].rglob("*.py"))
    return {
        **opening.record,
        "data_sha256": _digest(read),
        "model_sha256": _digest([path for path in weights if path.is_file()]),
        "code_sha256": _digest(code),
        "versions": versions(),
    }


def _digest(paths: Sequence[Path]) -> str:
    """Of the names and the contents of files; of large ones, as weights are, of their sizes and times."""
    found = hashlib.sha256()
    for path in paths:
        told = path.stat()
        small = told.st_size <= LARGE
        found.update(f"{path.name} {told.st_size} ".encode())
        found.update(path.read_bytes() if small else str(told.st_mtime_ns).encode())
    return found.hexdigest()[:16]
