"""Choosing an edit's options on a dev split, by a rule that is stated beforehand."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex

from .._support.arguments import as_integer, as_number
from .._support.progress import tracked
from ..edits.where import LayerChoice, choose_layers
from ..errors import InputError
from ..models.lens import Lens
from ..models.reading import Reading
from ..spectral.capturing import capture
from ..spectral.edit import SpectralEdit
from ..spectral.features import FeatureMap, feature_map
from ..spectral.fitting import fit
from ..spectral.ranks import Size
from ..texts.demonstrations import Demonstrations
from ..texts.items import Demonstration
from .results import Evaluation
from .run import Task, evaluate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Tuning:
    """What was tried and what the rule chose.

    Attributes:
        table: one row for each setting: its options, every score of the tasks, whether the budget allows it
            (`allowed`), and whether it was chosen (`chosen`).
        rule: in words.
        edit: the chosen edit.
        options: layers and strength that were chosen with it, for `applied`.
        unedited: without an edit, the score to maximise and those with a budget, by name.
    """

    table: "pd.DataFrame"
    rule: str
    edit: SpectralEdit
    options: Mapping[str, Any]
    unedited: Mapping[str, float]

    def __str__(self) -> str:
        chosen = self.table[self.table["chosen"]].iloc[0]
        settings = ", ".join(f"{name} {chosen[name]}" for name in ("feature", "energy", "centre", "layers", "strength"))
        scores = ", ".join(f"{name} {value:.4g} → {chosen[name]:.4g}" for name, value in self.unedited.items())
        return f"{settings} by the rule “{self.rule}” out of {len(self.table)} settings: {scores}"


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
    batch_size: SupportsIndex = 16,
    progress: bool = True,
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
        batch_size: sequences at a time.
        progress: show a progress bar.

    Returns:
        The whole table and the choice. Ties go to the setting that was tried first.

    Raises:
        InputError: an unknown score or option, an empty grid, or a budget that no setting keeps; refused before any
            setting is tried, but for the last.
    """
    import pandas as pd

    grid = {"feature": features, "energy": energies, "centre": centres, "layers": layers, "strength": strengths}
    lens = Lens.of(model)
    _check(grid, lens.n_layers)
    Reading(site)
    limits = {name: as_number(value, f"budget {name!r}") for name, value in (budget or {}).items()}
    batch_size = as_integer(batch_size, "batch_size", least=1)
    tasks = [task] if side_effects is None else [task, side_effects]
    common: dict[str, Any] = {"batch_size": batch_size, "progress": False}
    unedited = _scores([evaluate(model, one, **common) for one in tasks])
    if unknown := {maximise, *limits} - set(unedited):
        raise InputError(f"unknown scores {sorted(unknown)}: the tasks have {', '.join(unedited)}")

    demonstrations = Demonstrations.of(demonstrations)
    fitted: list[tuple[dict[str, Any], SpectralEdit]] = []
    for feature in features:
        covariance = capture(model, demonstrations, site=site, feature=feature, **common)
        for energy, centre in itertools.product(energies, centres):
            options = {"feature": feature_map(feature).name, "energy": energy, "centre": centre}
            fitted.append((options, fit(covariance, energy=energy, centre=centre)))
    points = list(itertools.product(fitted, layers, strengths))
    rows = []
    for (options, edit), where, strength in tracked(points, "tuning", len(points), show=progress):
        applied = {"layers": where, "strength": strength}
        scores = _scores([evaluate(model, one, edit=edit, **applied, **common) for one in tasks])
        allowed = all(scores[name] <= limit for name, limit in limits.items())
        rows.append({**options, **applied, **scores, "allowed": allowed})
    table = pd.DataFrame(rows)
    rule = f"largest {maximise}" + "".join(f", {name} at most {limit:g}" for name, limit in limits.items())
    if not table["allowed"].any():
        smallest = ", ".join(f"{name} {table[name].min():.4g}" for name in limits)
        raise InputError(f"no setting keeps the budget of “{rule}”: the smallest values found are {smallest}")
    best = table.loc[table["allowed"], maximise].idxmax()
    table["chosen"] = table.index == best
    (_, edit), *_ = points[int(best)]
    wanted = {name: unedited[name] for name in dict.fromkeys([maximise, *limits])}
    return Tuning(table, rule, edit, {name: rows[int(best)][name] for name in ("layers", "strength")}, wanted)


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
