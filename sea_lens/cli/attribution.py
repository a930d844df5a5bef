"""The analyses of `sea-lens attribute`, and its files."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._support.files import write_atomically
from .._support.json_files import write_json
from .._support.versions import versions
from ..contributions.base import Contributions
from ..contributions.direct import direct_contributions, first_tokens
from ..contributions.directions import by_direction, check_control_ranks, described
from ..contributions.games import MAX_EXACT_PLAYERS
from ..contributions.games import METHODS as GAME_METHODS
from ..contributions.heads import METHODS as HEAD_METHODS
from ..contributions.heads import PARTS, part_contributions, patching_contributions
from ..contributions.integral import Splitter, outside_inference_mode, path_contributions
from ..contributions.layers import METHODS as LAYER_METHODS
from ..contributions.layers import by_layer, by_position, layer_games
from ..contributions.patching import METHODS as PATCHING_METHODS
from ..contributions.results import DirectionContributions
from ..contributions.study import Study
from ..edits.activation import ActivationEdit
from ..edits.base import Edit
from ..errors import DemonstrationError, InputError
from ..evaluation.journal import Journal
from ..measure.effects import Effect
from ..models.lens import Lens
from ..plots.saving import write_figure
from ..spectral.capturing import Captured
from ..spectral.controls import permuted_fits
from ..spectral.edit import SpectralEdit
from ..texts.demonstrations import Demonstrations
from .files import REPORT, RESULTS, markdown_table, spectra_figure
from .resume import noted

# What can be measured, as (kind, method), in the order of the report.
ANALYSES = (
    *(("layers", method) for method in LAYER_METHODS),
    ("positions", "path"),
    ("directions", "path"),
    *(("heads", method) for method in HEAD_METHODS),
)
NAMES = tuple(f"{kind}_{method}" for kind, method in ANALYSES)
SPLITTERS: dict[str, Splitter] = {"layers_path": by_layer, "positions_path": by_position}
MOST_PATCHED = 2_000
TITLES = {"layers": "Layers", "positions": "Positions", "directions": "Directions", "heads": "Heads"}


def default_analyses(study: Study) -> list[str]:
    """Names of all analyses that the edit has, but for those that would be slow or refused.

    Heads by pattern and by value are measured where they are asked for, since each takes a run for every head.
    Shapley values are left out where they are not exact, since sampling takes thousands of runs, and direct
    contributions where `first_tokens` refuses a contrast, as where target and foil begin with the same token.
    """
    left_out = {f"heads_{method}" for method in PARTS}
    if len(study.layers) > MAX_EXACT_PLAYERS:
        left_out.add("layers_shapley")
    if not isinstance(study.edit, SpectralEdit):
        left_out.add("directions_path")
    if not isinstance(study.edit, ActivationEdit):
        left_out |= {name for name in NAMES if name.removeprefix("layers_") not in GAME_METHODS}
    try:
        first_tokens(study.contrasts)
    except DemonstrationError:
        left_out.add("heads_direct")
    return [name for name in NAMES if name not in left_out]


def check_analyses(edit: Edit, names: Sequence[str]) -> None:
    """Refuse analyses that an edit of this method does not have, before a model is loaded for them.

    Raises:
        InputError: naming the analysis and the method.
    """
    for name in names:
        of_activations = name.removeprefix("layers_") not in GAME_METHODS
        if of_activations and not isinstance(edit, ActivationEdit):
            raise InputError(f"--methods {name}: needs an edit of activations, {type(edit).__name__} is none")
        if name == "directions_path" and not isinstance(edit, SpectralEdit):
            raise InputError(f"--methods {name}: only a spectral edit has directions, {type(edit).__name__} is none")


@outside_inference_mode
def run_analyses(
    study: Study,
    names: Sequence[str],
    demonstrations: Demonstrations | None,
    control_draws: int,
    journal: Journal | None = None,
) -> dict[str, Contributions]:
    """Each analysis by name; with demonstrations, a permutation control beside each.

    Exact patching has none where it would be more than `MOST_PATCHED` runs of the contrasts.

    What is asked of one study is run once: the path integral is shared out in all ways that are wanted, patching
    methods share their clean runs, and the demonstrations are read once for all draws and descriptions.

    Args:
        study: the edit and its contrasts.
        names: of `NAMES`.
        demonstrations: what the edit was fitted from, None for no control.
        control_draws: permuted edits to compare with.
        journal: finished parts are noted there, and not measured again.
    """
    if "heads_direct" in names:
        # Refuses contrasts that it cannot measure, before any of the others has begun.
        first_tokens(study.contrasts)

    @functools.cache
    def read() -> tuple[Captured | None, list[SpectralEdit]]:
        is_read = control_draws > 0 or "directions_path" in names
        if not isinstance(study.edit, SpectralEdit) or demonstrations is None or not is_read:
            return None, []
        options = {"batch_size": study.batch_size, "progress": study.progress}
        captured = Captured.of(study.model, study.edit, demonstrations, **options)
        return captured, permuted_fits(study.edit, captured, control_draws, progress=study.progress)

    def measured(part: Sequence[str]) -> dict[str, Contributions]:
        captured, control = read()
        found = _paths(study, part, control) | _patches(study, part, control)
        for name in part:
            kind, method = ANALYSES[NAMES.index(name)]
            if kind == "layers" and method in GAME_METHODS:
                found[name] = layer_games(study, method, control=control)
            elif kind == "heads" and method in PARTS:
                found[name] = part_contributions(study, method, control)
            elif name == "heads_direct":
                found[name] = direct_contributions(study, None, control)
            elif kind == "directions":
                found[name] = described(study, found[name], captured)
        return {name: found[name] for name in part}

    results: dict[str, Contributions] = {}
    for number, part in enumerate(_parts(names)):
        results |= noted(journal, number, part, lambda part=part: measured(part))
    return {name: results[name] for name in names}


def _parts(names: Sequence[str]) -> list[list[str]]:
    """The analyses that are measured together, since they share what is run; each of the others by itself."""
    paths = [name for name in names if name.endswith("_path")]
    patches = [name for name in names if name.removeprefix("heads_") in PATCHING_METHODS]
    others = [[name] for name in names if name not in {*paths, *patches}]
    return [part for part in (paths, patches, *others) if part]


def _paths(study: Study, names: Sequence[str], control: Sequence[Edit]) -> dict[str, Any]:
    """The path analyses among these names, from one integral."""
    wanted = {name: splitter for name, splitter in SPLITTERS.items() if name in names}
    if "directions_path" in names:
        check_control_ranks(study.edit, study.layers, control)
        wanted["directions_path"] = by_direction(study)
    if not wanted:
        return {}
    return dict(zip(wanted, path_contributions(study, dict.fromkeys(wanted.values(), control), None), strict=True))


def _patches(study: Study, names: Sequence[str], control: Sequence[Edit]) -> dict[str, Any]:
    """The patching analyses among these names, with their clean runs shared."""
    # A control of exact patching costs as much as the patching, for each draw.
    quick = len(control) * study.lens.n_layers * study.lens.n_heads <= MOST_PATCHED
    methods = {
        name: control if quick or name == "gradient" else () for name in PATCHING_METHODS if f"heads_{name}" in names
    }
    found = patching_contributions(study, methods) if methods else {}
    return {f"heads_{name}": result for name, result in found.items()}


def write_attribution(
    folder: Path,
    model: Any,
    edit: Edit,
    effect: Effect,
    results: dict[str, Contributions],
    settings: dict[str, Any],
) -> None:
    """Write results.json, report.md and the figures."""
    effect = beside_controls(effect, results)
    write_figure(folder / "effect.png", effect.plot())
    spectral = isinstance(edit, SpectralEdit)
    if spectral:
        write_figure(folder / "spectra.png", spectra_figure(edit))
    for name, contributions in results.items():
        write_figure(folder / f"{name}.png", contributions.plot())
    write_json(
        folder / RESULTS,
        {
            **effect_numbers(effect),
            "contributions": {name: contribution_numbers(contributions) for name, contributions in results.items()},
            "settings": settings,
            "model": Lens.of(model).record,
            "edit": about_edit(edit),
            "versions": versions(),
        },
    )
    described = ", ".join(f"{name} {value}" for name, value in settings.items())
    sections = ["# Why the edit works\n", f"{effect}\n", "![effect](effect.png)\n", f"Settings: {described}\n"]
    kinds = [ANALYSES[NAMES.index(name)][0] for name in results]
    for place, (name, contributions) in enumerate(results.items()):
        if place == 0 or kinds[place] != kinds[place - 1]:
            sections.append(f"## {TITLES[kinds[place]]}\n")
        sections += [*section(contributions), f"![{name}]({name}.png)\n"]
    sections += ["## Spectra\n", "![spectra](spectra.png)\n"] if spectral else []
    write_atomically(folder / REPORT, "\n".join(sections))


def beside_controls(effect: Effect, results: Mapping[str, Contributions]) -> Effect:
    """The effect with those of the control edits, where an analysis has measured them in the same unit."""
    for found in results.values():
        if found.control_effects is not None and found.unit == "nats":
            return replace(effect, control_effects=found.control_effects)
    return effect


def about_edit(edit: Edit) -> dict[str, Any]:
    """What an edit says of itself."""
    about = {"method": type(edit).__name__, "site": edit.site, "layers": list(edit.layers)}
    if isinstance(edit, SpectralEdit):
        about |= {"feature": edit.feature.name, "options": edit.options, "n": edit.n}
    provenance = dict(getattr(edit, "provenance", {}))
    for name in {"demonstrations", "chosen_on"} & provenance.keys():
        # Digests of questions are for comparing, not for reading. A stranger's provenance can say anything.
        entries = provenance[name] if isinstance(provenance[name], (list, tuple)) else []
        if entries and all(isinstance(entry, Mapping) for entry in entries):
            provenance[name] = [{k: v for k, v in entry.items() if k != "questions"} for entry in entries]
    return about | {"provenance": provenance}


def write_effect(folder: Path, model: Any, effect: Effect, settings: dict[str, Any]) -> None:
    """Write results.json, report.md and the figure of an effect alone."""
    write_figure(folder / "effect.png", effect.plot())
    about = {"settings": settings, "model": Lens.of(model).record, "versions": versions()}
    write_json(folder / RESULTS, {**effect_numbers(effect), **about})
    described = ", ".join(f"{name} {value}" for name, value in settings.items())
    write_atomically(
        folder / REPORT, f"# Effect of the edit\n\n{effect}\n\n![effect](effect.png)\n\nSettings: {described}\n"
    )


def section(contributions: Contributions, rows: int = 10) -> list[str]:
    """A result in words and a table of its largest values."""
    frame = contributions.to_frame()
    # From enough contrasts on, what is shown is chosen on one half of them, and its value on the other stands beside.
    by = "value_chosen_by" if contributions.can_split else "value"
    table = frame.loc[frame[by].fillna(frame["value"]).abs().sort_values(ascending=False).index[:rows]]
    # Columns that nothing in the table uses say nothing.
    table = table.dropna(axis=1, how="all").loc[:, lambda kept: ~(kept == "").all()]
    parts = [f"**{contributions.method}**: {contributions}\n", markdown_table(table.to_dict(orient="records")) + "\n"]
    if isinstance(contributions, DirectionContributions):
        for label, description in contributions.descriptions.items():
            if description.fires_on:
                named = ", ".join(f"{index} ({value:+.2f})" for index, value in description.fires_on)
                parts.append(f"- {contributions.named(label)} fires on demonstrations {named}")
        parts.append("")
    return parts


def effect_numbers(effect: Effect) -> dict[str, Any]:
    """Every number of an effect."""
    return {
        "effect": effect.effect,
        "before": effect.before,
        "after": effect.after,
        "interval": effect.interval,
        "control_effects": effect.control_effects,
        "p_value": effect.p_value,
        "items": effect.to_frame().to_dict(orient="records"),
    }


def contribution_numbers(contributions: Contributions) -> dict[str, Any]:
    """Every number of a contribution analysis."""
    numbers = {
        "method": contributions.method,
        "unit": contributions.unit,
        "effect": contributions.effect,
        "total": contributions.total,
        "closure_error": contributions.closure_error,
        "details": contributions.details,
        "values": contributions.to_frame().astype(object).where(lambda kept: kept.notna(), None).to_dict("records"),
        "item_closure_error": contributions.item_closure_error,
        "effect_p_value": contributions.effect_p_value,
        "control_values": contributions.control_values,
        "control_effects": contributions.control_effects,
        "item_values": contributions.item_values,
        "item_effects": contributions.item_effects,
    }
    if isinstance(contributions, DirectionContributions):
        described = contributions.descriptions
        numbers["descriptions"] = {".".join(map(str, label)): about for label, about in described.items()}
    return numbers
