"""Choosing an edit's options on a dev split, by a rule that is stated beforehand."""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

from .._support.arguments import as_integer, as_number
from .._support.json_files import plain
from .._support.processes import is_first
from .._support.progress import tracked
from .._support.statistics import Interval
from .._support.versions import versions
from ..edits.where import LayerChoice, Positions, choose_layers
from ..errors import FileError, InputError
from ..models.lens import Lens
from ..models.reading import Reading
from ..models.sites import site_names
from ..models.token_positions import check_positions, positions_name
from ..spectral.edit import SpectralEdit
from ..spectral.features import FeatureMap, feature_map
from ..spectral.fitting import fit
from ..spectral.one_pass import OnePass
from ..spectral.ranks import Size
from ..spectral.site_stores import store_folders
from ..texts.demonstrations import Demonstrations
from ..texts.items import Demonstration
from .choosing import check_choose, check_scores, check_tasks, choose_setting, chosen_on, difference, side_effect_name
from .fingerprints import model_identity
from .journal import Journal
from .results import Evaluation, compare
from .run import Report, Task, evaluate
from .tuning_results import Tuning


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
    site: str | Sequence[str] = "mlp_out",
    positions: Positions = "all",
    choose: str = "best",
    held_out: Task | None = None,
    batch_size: SupportsIndex = 16,
    progress: bool = True,
    journal: str | os.PathLike[str] | None = None,
    store: str | os.PathLike[str] | None = None,
    report: Report | None = None,
) -> Tuning:
    """Try every setting of a grid on a dev split and take the best that a budget allows.

    The demonstrations are read once, for all sites and feature maps, and every edit is what `fit` makes of `capture`.
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
        site: what is edited, or a list of sites to try.
        positions: where in a text every edit acts, as in `applied`.
        choose: "best" takes the largest score; "one_standard_error" the weakest edit whose score is within one standard
            error of it (docs/method.md 6.12).
        held_out: items that nothing was chosen on, to measure the chosen edit on once.
        batch_size: sequences at a time.
        progress: show a progress bar.
        journal: a file in which finished settings are noted. A tuning that was interrupted goes on from it, and ends
            with the same results; delete it when they are safe.
        report: called with each setting and its scores as they are known, as trackers of experiments take them.
        store: a folder to keep the activations of the demonstrations in, as in `capture`. Without it, sums over as many
            demonstrations as activations are wide, or more, are in memory for all sites and feature maps at once.

    Returns:
        The whole table and the choice. Ties go to the setting that was tried first.

    Raises:
        InputError: an unknown score, rule or option, an empty grid, or a budget that no setting keeps; refused before
            any setting is tried, but for the last.
        FileError: the journal or the store cannot be written, or is damaged.
        MismatchError: the journal belongs to a tuning of something else, or the store to another capture.
    """
    import pandas as pd

    layers, strengths = _as_values(layers, _layer_choice), _as_values(strengths, lambda s: as_number(s, "strength"))
    sites = site_names(site)
    grid = {"site": sites, "feature": features, "energy": energies, "centre": centres}
    grid |= {"layers": layers, "strength": strengths}
    check_choose(choose)
    check_tasks(task=task, side_effects=side_effects, held_out=held_out)
    lens = Lens.of(model)
    _check(grid, lens.n_layers)
    check_positions(positions)
    limits = {name: as_number(value, f"budget {name!r}") for name, value in (budget or {}).items()}
    batch_size = as_integer(batch_size, "batch_size", least=1)
    tasks = [task] if side_effects is None else [task, side_effects]
    check_scores([maximise, *limits], tasks)
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
        "options": {"maximise": maximise, "budget": limits, "batch_size": batch_size, "choose": choose}
        | ({} if positions == "all" else {"positions": positions_name(positions)}),
        "versions": versions(),
    }
    if callable(positions) and journal is not None:
        raise InputError("a journal cannot tell one function from another: expected positions by name beside it")
    notes = None if journal is None else Journal(journal, identity, "tuning")
    folders = None if store is None else store_folders(store, site if isinstance(site, str) else sites)
    every = tuple(range(lens.n_layers))
    one_pass = OnePass.of(lens, [Reading(one) for one in sites], demonstrations, every, batch_size)
    captured = one_pass.kept([feature_map(one) for one in features], folders)
    unedited = _noted(notes, 0, lambda: _scores([evaluate(model, one, **common) for one in tasks]))
    if unknown := [name for name in (maximise, *limits) if name not in list(unedited)]:
        raise InputError(f"unknown scores {unknown}: the tasks have {', '.join(unedited)}")

    fitted: list[tuple[dict[str, Any], SpectralEdit]] = []
    for covariance in itertools.chain(*captured):
        for energy, centre in itertools.product(energies, centres):
            options = {"site": covariance.site, "feature": covariance.feature.name, "energy": energy, "centre": centre}
            fitted.append((options, fit(covariance, energy=energy, centre=centre)))
    del captured
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
        if report is not None and is_first():
            report(rows[-1])
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
    edit, beside = chosen_on(edit, tasks).with_defaults(**options, positions=remembered), None
    if held_out is not None:
        beside = compare(evaluate(model, held_out, **common), evaluate(model, held_out, edit=edit, **common))
    if choose != "best":
        rule = f"the weakest edit within one standard error of the {rule}"
    return Tuning(table, rule, edit, options, wanted, maximise, limits, choose, against, beside)


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
    for name, values in grid.items():
        # It would be the runner-up to itself.
        if twice := [value for place, value in enumerate(values) if value in values[:place]]:
            raise InputError(f"{name} {getattr(twice[0], 'name', twice[0])!r} is given twice: expected each value once")
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
        found |= {side_effect_name(name, found): x for name, x in evaluation.scores.items()}
    return found
