"""What can be run, before anything is: data, model and memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import SeaLensError
from ..planning.planner import plan
from .items import ItemOfPaper
from .opening import Opening
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
        if item.script == "generations" and subject.judge is None:
            own.append("judges: --judge TRUTH,INFO")
        enough = not lacking if item.both else len(lacking) < len(item.needs)
        found.append(Check(item, tuple(dict.fromkeys([*lacking, *own])), enough and not own))
    return found


def planned(items: Sequence[ItemOfPaper], opening: Opening, subject: Subject) -> list[str]:
    """What every model takes, without its weights: the model, those it is compared with, the judges; or why not.

    The shipped model fits anywhere, and is left out.
    """
    given = {"backend": opening.backend, "device": opening.device, "dtype": opening.dtype}
    scripts = {item.script for item in items}
    names = {subject.name: ("load", "capture", "fit")}
    names |= dict.fromkeys(subject.models if "models" in scripts else (), ("load", "capture", "fit"))
    names |= dict.fromkeys(opening.judge if "generations" in scripts else (), ("load",))
    told = []
    for name, steps in names.items():
        if replace(opening, model=name).testbed is None:
            try:
                told.append(str(plan(name, steps=steps, batch_size=subject.batch_size, **given)))
            except SeaLensError as error:
                told.append(f"model {name}: {error}")
    return told
