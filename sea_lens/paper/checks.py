"""What can be run, before anything is: data, model and memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import SeaLensError
from ..planning.planner import plan
from ..planning.plans import Plan
from .items import ItemOfPaper
from .subject import Subject


@dataclass(frozen=True)
class Check:
    """Whether an item can be run.

    Attributes:
        item: which.
        reasons: what is missing; an item with all of its data has none.
        runs: whether it runs, perhaps in part.
    """

    item: ItemOfPaper
    reasons: tuple[str, ...]
    runs: bool


def checked(items: Sequence[ItemOfPaper], subject: Subject) -> list[Check]:
    """Read the data that every item needs, and no model."""
    missing = {name: subject.missing(name) for name in ("truth", "bias")}
    extra: dict[str, str] = {}
    for script, read in (("generalisation", subject.crows_pairs), ("capabilities", subject.other_tasks)):
        try:
            read()
        except SeaLensError as error:
            extra[script] = str(error)
    found = []
    for item in items:
        lacking = [missing[name] for name in item.needs if missing[name]]
        own = [extra[item.script]] if item.script in extra else []
        enough = not lacking if item.both else len(lacking) < len(item.needs)
        found.append(Check(item, tuple(dict.fromkeys([*lacking, *own])), enough and not own))
    return found


def planned(subject: Subject) -> Plan:
    """What loading, reading and fitting take on the model, without its weights.

    Raises:
        Those of `sl.plan`, where the model is not there or cannot be planned for.
    """
    return plan(subject.name, steps=("load", "capture", "fit"), batch_size=subject.batch_size)
