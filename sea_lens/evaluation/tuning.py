"""Choosing an edit's options on a dev split, by a rule that is stated beforehand."""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from .._support.arguments import as_integer, as_number
from .._support.json_files import plain, read_sealed_json, write_sealed_json
from .._support.progress import tracked
from .._support.statistics import Interval
from .._support.storage import ImpossibleError, as_file_errors
from .._support.versions import versions
from ..edits.where import LayerChoice, Positions, choose_layers
from ..errors import FileError, InputError
from ..models.lens import Lens
from ..models.reading import Reading
from ..models.token_positions import check_positions, positions_name
from ..spectral.capturing import capture
from ..spectral.edit import SpectralEdit
from ..spectral.features import FeatureMap, feature_map
from ..spectral.fitting import fit
from ..spectral.ranks import Size
from ..texts.demonstrations import Demonstrations
from ..texts.items import Demonstration
from .choosing import check_choose, choose_setting, chosen_on, difference
from .fingerprints import model_identity
from .journal import Journal
from .results import Comparison, Evaluation, compare
from .run import Task, evaluate

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
        # First, since the results name it.
        self.edit.save(Path(folder) / EDIT)
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
        write_sealed_json(Path(folder) / RESULTS, content)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], feature: FeatureMap | None = None) -> "Tuning":
        """Read what `save` wrote; `feature` is the feature map of the chosen edit, where it was one of the user's own.

        Raises:
            FileError: missing or changed files, a choice that is not the rule's, or an edit that is not the chosen one.
        """
        import pandas as pd

        path = Path(folder) / RESULTS
        content = read_sealed_json(path, _KIND)
        edit = SpectralEdit.load(Path(folder) / EDIT, feature)
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
        settings = ", ".join(f"{name} {chosen[name]}" for name in ("feature", "energy", "centre", "layers", "strength"))
        scores = ", ".join(f"{name} {value:.4g} → {chosen[name]:.4g}" for name, value in self.unedited.items())
        beside = "".join(f"; {interval} above the {name}" for name, interval in self.against.items())
        unseen = "" if self.held_out is None else f"; held out: {self.held_out}"
        return f"{settings} by the rule “{self.rule}” out of {len(self.table)} settings: {scores}{beside}{unseen}"


def tune(
    model: Any,
    demonstrations: Iterable[Demonstration],
    task: Task,
    *,
    maximise: str,
    side_effects: Task | None = None,
    budget: Mapping[str, Any] | None = None,
    energies: Sequence[Any] = (0.99, 0.999, 0.9999),
    centres: Sequence[bool] = (False, True),
    layers: Sequence[LayerChoice] = ("all",),
    strengths: Sequence[Any] = (0.5, 1.0, 1.5),
    features: Sequence[str | FeatureMap] = ("identity",),
    site: str = "mlp_out",
    positions: Positions = "all",
    choose: str = "best",
    held_out: Task | None = None,
    batch_size: SupportsIndex = 16,
    progress: bool = True,
    journal: str | os.PathLike[str] | None = None,
) -> Tuning:
    """Try every setting of a grid on a dev split and take the best that a budget allows.

    What it is given is all that it sees: keep the test split out of `demonstrations`, `task` and `side_effects`, and
    report the chosen edit on it once.

    Args:
        model: a TransformerLens model.
        demonstrations: to fit from.
        task: the dev split of a benchmark (`Task.read`).
        maximise: the score of `task` to make largest, such as "mc2".
        side_effects: a second task, such as perplexity on plain text, whose "kl" says how far the edit moves the model.
            A score of it that `task` has too is called "side_effects.NAME".
        budget: largest allowed value of each of these scores, of either task, such as {"kl": 0.1}.
        energies, centres, features: as in `fit` and `capture`.
        layers, strengths: as in `applied`.
        site: what is edited.
        positions: where in a text every edit acts, as in `applied`.
        choose: "best" takes the largest score; "one_standard_error" the weakest edit whose score is within one standard
            error of it (docs/method.md 6.12).
        held_out: items that nothing was chosen on, to measure the chosen edit on once.
        batch_size: sequences at a time.
        progress: show a progress bar.
        journal: a file in which finished settings are noted. A tuning that was interrupted goes on from it, and ends
            with the same results; delete it when they are safe.

    Returns:
        The whole table and the choice. Ties go to the setting that was tried first.

    Raises:
        InputError: an unknown score, rule or option, an empty grid, or a budget that no setting keeps; refused before
            any setting is tried, but for the last.
        FileError: the journal cannot be written, or is damaged.
        MismatchError: the journal belongs to a tuning of something else.
    """
    import pandas as pd

    layers, strengths = _as_values(layers, _layer_choice), _as_values(strengths, lambda s: as_number(s, "strength"))
    grid = {"feature": features, "energy": energies, "centre": centres, "layers": layers, "strength": strengths}
    check_choose(choose)
    lens = Lens.of(model)
    _check(grid, lens.n_layers)
    Reading(site)
    check_positions(positions)
    limits = {name: as_number(value, f"budget {name!r}") for name, value in (budget or {}).items()}
    batch_size = as_integer(batch_size, "batch_size", least=1)
    tasks = [task] if side_effects is None else [task, side_effects]
    common: dict[str, Any] = {"batch_size": batch_size, "progress": False}
    demonstrations = Demonstrations.of(demonstrations)
    identity = {
        "model": model_identity(lens),
        "demonstrations": demonstrations.digest,
        "tasks": [
            {"benchmark": one.benchmark.name, "source": one.source, "sha256": one.digest, "prompt": repr(one.template)}
            for one in tasks
        ],
        "grid": {name: [getattr(value, "name", repr(value)) for value in values] for name, values in grid.items()},
        "options": {"maximise": maximise, "budget": limits, "site": site, "batch_size": batch_size, "choose": choose}
        | ({} if positions == "all" else {"positions": positions_name(positions)}),
        "versions": versions(),
    }
    if callable(positions) and journal is not None:
        raise InputError("a journal cannot tell one function from another: expected positions by name beside it")
    notes = None if journal is None else Journal(journal, identity, "tuning")
    unedited = _noted(notes, 0, lambda: _scores([evaluate(model, one, **common) for one in tasks]))
    if unknown := {maximise, *limits} - set(unedited):
        raise InputError(f"unknown scores {sorted(unknown)}: the tasks have {', '.join(unedited)}")

    fitted: list[tuple[dict[str, Any], SpectralEdit]] = []
    for feature in features:
        covariance = capture(model, demonstrations, site=site, feature=feature, **common)
        for energy, centre in itertools.product(energies, centres):
            options = {"feature": feature_map(feature).name, "energy": energy, "centre": centre}
            fitted.append((options, fit(covariance, energy=energy, centre=centre)))
    points = list(itertools.product(fitted, layers, strengths))
    rows = []
    steps = enumerate(tracked(points, "tuning", len(points), show=progress), start=1)
    for number, ((options, edit), where, strength) in steps:
        applied = {"layers": where, "strength": strength}

        def tried(edit: SpectralEdit = edit, applied: dict[str, Any] = applied) -> dict[str, float]:
            return _scores([evaluate(model, one, edit=edit, positions=positions, **applied, **common) for one in tasks])

        scores = _noted(notes, number, tried, unedited)
        allowed = all(scores[name] <= limit for name, limit in limits.items())
        rows.append({**options, **applied, **scores, "allowed": allowed})
    table = pd.DataFrame(rows)
    rule = f"largest {maximise}" + "".join(f", {name} at most {limit:g}" for name, limit in limits.items())
    if not table["allowed"].any():
        smallest = ", ".join(f"{name} {table[name].min():.4g}" for name in limits)
        raise InputError(f"no setting keeps the budget of “{rule}”: the smallest values found are {smallest}")
    if not table.loc[table["allowed"], maximise].notna().any():
        raise InputError(f"no setting within the budget has a score {maximise!r}: it is a quotient of nothing")

    def measured(place: int) -> Evaluation:
        (_, one), where, strength = points[place]
        return evaluate(model, task, edit=one, layers=where, strength=strength, positions=positions, **common)

    tried_at = [float(strength) for _, _, strength in points]
    columns = table[maximise].tolist(), tried_at, table["allowed"].tolist()
    best, runner_up = choose_setting(*columns, choose, measured, maximise)
    table["chosen"] = table.index == best
    (_, edit), *_ = points[best]
    wanted = {name: unedited[name] for name in dict.fromkeys([maximise, *limits])}
    options = {name: rows[best][name] for name in ("layers", "strength")}
    against: dict[str, Interval] = {}
    chosen = measured(best)
    if maximise in chosen.scores:
        against["unedited"] = difference(evaluate(model, task, **common), chosen, maximise)
        if runner_up is not None:
            against["runner-up"] = difference(measured(runner_up), chosen, maximise)
    remembered = None if positions == "all" else positions
    edit, beside = chosen_on(edit, task).with_defaults(**options, positions=remembered), None
    if held_out is not None:
        beside = compare(evaluate(model, held_out, **common), evaluate(model, held_out, edit=edit, **common))
    if choose != "best":
        rule = f"the weakest edit within one standard error of the {rule}"
    return Tuning(table, rule, edit, options, wanted, maximise, limits, choose, against, beside)


def _choice(table: "pd.DataFrame", maximise: str, limits: Mapping[str, float]) -> "tuple[pd.Series, int]":
    """Which settings keep the budget, and the first of those with the largest score to maximise."""
    allowed = table[maximise].map(lambda _: True)
    for name, limit in limits.items():
        allowed &= table[name] <= limit
    return allowed, int(table.loc[allowed, maximise].idxmax())


def _noted(
    notes: Journal | None,
    number: int,
    measure: Callable[[], dict[str, float]],
    like: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The scores that the journal has as a part, or those that are measured now and noted in it.

    Raises:
        FileError: the part has other scores than `like`.
    """
    if notes is None:
        return measure()
    if number not in notes.parts:
        notes.add(number, plain(measure()))
    try:
        found = {name: float(value) for name, value in notes.parts[number].items()}
    except (ValueError, TypeError, AttributeError):
        found = {}
    if not found or (like is not None and found.keys() != like.keys()):
        raise FileError(f"{notes.path} holds other scores than those of the tasks: delete it to start anew")
    return found


def _from_text(value: Any) -> Any:
    """A value of a table, in which JSON has made NaN a text."""
    return float(value) if value in ("nan", "inf", "-inf") else value


def _as_values(values: Any, as_value: Callable[[Any], Any]) -> Any:
    """A list of plain values that a table and a file can hold; what is no list is left to `_check`."""
    return values if isinstance(values, str) else [as_value(value) for value in values]


def _layer_choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    if hasattr(choice, "__index__") and not getattr(choice, "ndim", 0):
        return as_integer(choice, "layers")
    return [as_integer(layer, "layers") for layer in choice]


def _check(grid: Mapping[str, Sequence[Any]], n_layers: int) -> None:
    """Refuse a grid with something in it that no edit of the model knows."""
    if empty := [name for name, values in grid.items() if isinstance(values, str) or not list(values)]:
        raise InputError(f"expected a list of at least one value for {', '.join(empty)}")
    for feature in grid["feature"]:
        feature_map(feature)
    for energy in grid["energy"]:
        Size.of(energy)
    for strength in grid["strength"]:
        as_number(strength, "strength")
    for choice in grid["layers"]:
        # Only that there are signatures counts here.
        choose_layers(choice, range(n_layers), dict.fromkeys(range(n_layers), 0.0))


def _scores(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Scores of the task, and those of the side effects, marked where their names are taken."""
    found = dict(evaluations[0].scores)
    for evaluation in evaluations[1:]:
        found |= {f"side_effects.{name}" if name in found else name: x for name, x in evaluation.scores.items()}
    return found
