"""What `tune` tried and chose, and its files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._support.arguments import as_number
from .._support.json_files import read_sealed_json, write_sealed_json
from .._support.regular_files import check_name
from .._support.statistics import Interval
from .._support.storage import ImpossibleError, as_file_errors
from ..spectral.edit import SpectralEdit
from ..spectral.features import FeatureMap
from .choosing import check_choose
from .results import Comparison

if TYPE_CHECKING:
    import pandas as pd

# What `Tuning.save` writes.
EDIT, RESULTS = "edit.safetensors", "results.json"
_KIND = "tuning"


@dataclass(frozen=True, eq=False)
class Tuning:
    """What was tried and what the rule chose.

    Attributes:
        table: one row for each setting: its options, every score of the tasks, whether the budget allows it
            (`allowed`), and whether it was chosen (`chosen`).
        rule: in words.
        edit: the chosen edit, which remembers the layers, strength and positions that were chosen with it.
        options: layers and strength that were chosen with it, for `applied`.
        unedited: without an edit, the score to maximise and those with a budget, by name.
        maximise: the score that the rule makes largest.
        limits: the budget that it keeps.
        choose: which of the settings within the budget the rule takes, as in `tune`.
        against: paired interval on the dev split of how far the score to maximise is above that of the "unedited"
            model and of the "runner-up", the best of the other allowed settings. The chosen one is chosen by the same
            items, so that both differences are too large by chance; `held_out` is not.
        held_out: the chosen edit beside the unedited model on the task given as `held_out`, measured once. A file keeps
            its numbers, but not the items that they come from, so that it is None in what `load` gives.

    Raises:
        InputError: a table whose chosen setting is not one that the rule takes.
    """

    table: "pd.DataFrame"
    rule: str
    edit: SpectralEdit
    options: Mapping[str, Any]
    unedited: Mapping[str, float]
    maximise: str
    limits: Mapping[str, float] = field(default_factory=dict)
    choose: str = "best"
    against: Mapping[str, Interval] = field(default_factory=dict)
    held_out: Comparison | None = None

    def __post_init__(self) -> None:
        try:
            check_choose(self.choose)
            for name in ("allowed", "chosen"):
                if not all(type(value) is bool for value in self.table[name].tolist()):
                    raise ValueError(f"{name!r} is not yes or no for each setting")
            allowed, best = _choice(self.table, self.maximise, self.limits)
            chosen = self.table.index[self.table["chosen"].to_numpy(dtype=bool)].tolist()
            # Which settings are as good as the best by chance, the items tell and the table does not.
            possible = [best] if self.choose == "best" else self.table.index[allowed].tolist()
            if self.table["allowed"].tolist() != allowed.tolist() or len(chosen) != 1 or chosen[0] not in possible:
                raise ValueError(f"its choice {chosen} is not the rule's, {possible}")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ImpossibleError(f"this is no result of tune: {error}") from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the chosen edit (`edit.safetensors`) and everything else (`results.json`) into a folder.

        Raises:
            FileError: they cannot be written; a half-written one is never left.
        """
        folder = check_name(folder)
        # First, since the results name it.
        self.edit.save(folder / EDIT)
        content = {
            "sea_lens": _KIND,
            "rule": self.rule,
            "maximise": self.maximise,
            "limits": self.limits,
            "options": self.options,
            "unedited": self.unedited,
            "choose": self.choose,
            "against": self.against,
            "held_out": None if self.held_out is None else self.held_out.to_frame().reset_index().to_dict("records"),
            "edit": self.edit.digest,
            "settings": self.table.to_dict("records"),
        }
        write_sealed_json(folder / RESULTS, content)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], feature: FeatureMap | None = None) -> "Tuning":
        """Read what `save` wrote; `feature` is the feature map of the chosen edit, where it was one of the user's own.

        Raises:
            FileError: missing or changed files, a choice that is not the rule's, or an edit that is not the chosen one.
        """
        import pandas as pd

        folder = check_name(folder)
        path = folder / RESULTS
        content = read_sealed_json(path, _KIND)
        edit = SpectralEdit.load(folder / EDIT, feature)
        with as_file_errors(path):
            settings = content["settings"]
            if len({tuple(row) for row in settings}) != 1:
                raise ValueError("its settings have different scores")
            if edit.digest != content["edit"]:
                raise ValueError(f"{EDIT} is not the edit that was chosen")
            table = pd.DataFrame([{name: _from_text(x) for name, x in row.items()} for row in settings])
            unedited = {name: float(x) for name, x in content["unedited"].items()}
            limits = {name: as_number(x, name) for name, x in content["limits"].items()}
            options = dict(content["options"])
            against = {
                name: Interval(**{key: _from_text(x) for key, x in one.items()})
                for name, one in content["against"].items()
            }
            said = str(content["rule"]), str(content["maximise"]), str(content["choose"])
            loaded = cls(table, said[0], edit, options, unedited, said[1], limits, said[2], against)
            chosen = settings[table["chosen"].tolist().index(True)]
            if any(chosen[name] != value for name, value in options.items()):
                raise ValueError("its options are not those of the chosen setting")
        return loaded

    def __str__(self) -> str:
        chosen = self.table[self.table["chosen"]].iloc[0]
        options = ("site", "feature", "energy", "centre", "layers", "strength")
        # Those of version 0.1 tell no site.
        settings = ", ".join(f"{name} {chosen[name]}" for name in options if name in chosen)
        scores = ", ".join(f"{name} {value:.4g} → {chosen[name]:.4g}" for name, value in self.unedited.items())
        beside = "".join(f"; {interval} above the {name}" for name, interval in self.against.items())
        unseen = "" if self.held_out is None else f"; held out: {self.held_out}"
        return f"{settings} by the rule “{self.rule}” out of {len(self.table)} settings: {scores}{beside}{unseen}"


def _choice(table: "pd.DataFrame", maximise: str, limits: Mapping[str, float]) -> "tuple[pd.Series, int]":
    """Which settings keep the budget, and the first of those with the largest score to maximise."""
    allowed: Any = table[maximise].map(lambda _: True)
    for name, limit in limits.items():
        allowed &= table[name] <= limit
    return allowed, int(table.loc[allowed, maximise].idxmax())


def _from_text(value: Any) -> Any:
    """A value of a table, in which JSON has made NaN a text."""
    return float(value) if value in ("nan", "inf", "-inf") else value
