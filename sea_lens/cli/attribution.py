"""The analyses of `sea-lens attribute`, and its files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._support.json_files import write_json
from .._support.storage import write_atomically
from .._support.versions import versions
from ..contributions.direct import first_tokens
from ..contributions.directions import direction_contributions
from ..contributions.games import MAX_EXACT_PLAYERS
from ..contributions.games import METHODS as GAME_METHODS
from ..contributions.heads import METHODS as HEAD_METHODS
from ..contributions.heads import head_contributions
from ..contributions.layers import METHODS as LAYER_METHODS
from ..contributions.layers import layer_contributions, position_contributions
from ..contributions.results import Contributions, DirectionContributions
from ..edits.activation import ActivationEdit
from ..edits.base import Edit
from ..errors import DemonstrationError
from ..measure.effects import Effect
from ..models.lens import Lens
from ..spectral.controls import permuted
from ..spectral.edit import SpectralEdit
from ..texts.demonstrations import Contrasts, Demonstrations
from .files import markdown_table, write_figure

# What is measured, in the order of the report: kind, method.
ANALYSES = (
    *(("layers", method) for method in LAYER_METHODS),
    ("positions", "path"),
    ("directions", "path"),
    *(("heads", method) for method in HEAD_METHODS),
)
NAMES = tuple(f"{kind}_{method}" for kind, method in ANALYSES)
TITLES = {"layers": "Layers", "positions": "Positions", "directions": "Singular directions", "heads": "Heads"}


def default_analyses(
    model: Any, edit: Edit, contrasts: Contrasts, layers: Sequence[int], prepend_bos: bool
) -> list[str]:
    """All analyses that the edit has; Shapley values only where they are exact, since sampling takes thousands of runs.

    Direct contributions only where target and foil of every contrast begin differently, which they need.
    """
    left_out = {"layers_shapley"} if len(layers) > MAX_EXACT_PLAYERS else set()
    if not isinstance(edit, SpectralEdit):
        left_out.add("directions_path")
    if not isinstance(edit, ActivationEdit):
        left_out |= {name for name in NAMES if name.removeprefix("layers_") not in GAME_METHODS}
    try:
        first_tokens(Lens.of(model), contrasts, prepend_bos)
    except DemonstrationError:
        left_out.add("heads_direct")
    return [name for name in NAMES if name not in left_out]


def run_analyses(
    model: Any,
    edit: Edit,
    contrasts: Contrasts,
    names: Sequence[str],
    where: dict[str, Any],
    demonstrations: Demonstrations | None,
    control_draws: int,
    *,
    batch_size: int,
    prepend_bos: bool,
) -> dict[str, Contributions]:
    """Each analysis by name, with a permutation control where there are demonstrations."""
    common = {**where, "batch_size": batch_size, "prepend_bos": prepend_bos}
    if "heads_direct" in names:
        # Refuses contrasts that it cannot measure, before any of the others has begun.
        first_tokens(Lens.of(model), contrasts, prepend_bos)
    control: Sequence[SpectralEdit] = ()
    if isinstance(edit, SpectralEdit) and demonstrations is not None and control_draws:
        control = permuted(model, edit, demonstrations, control_draws, batch_size=batch_size, progress=True)
    results: dict[str, Contributions] = {}
    for kind, method in (ANALYSES[NAMES.index(name)] for name in names):
        name = f"{kind}_{method}"
        if kind == "layers":
            results[name] = layer_contributions(
                model, edit, contrasts, method, **common, control=control, progress=True
            )
        elif kind == "positions":
            results[name] = position_contributions(model, edit, contrasts, **common)
        elif kind == "directions":
            results[name] = direction_contributions(
                model, edit, contrasts, **common, demonstrations=demonstrations, control=control
            )
        else:
            # A control of patching would cost as much as the patching, for each draw.
            controls = control if method in ("direct", "gradient") else ()
            results[name] = head_contributions(
                model, edit, contrasts, method, **common, control=controls, progress=True
            )
    return results


def write_attribution(
    folder: Path,
    model: Any,
    edit: Edit,
    effect: Effect,
    results: dict[str, Contributions],
    settings: dict[str, Any],
) -> None:
    """Write results.json, report.md and the figures."""
    from ..plots import edits as plots

    write_figure(folder / "effect.png", effect.plot())
    spectral = isinstance(edit, SpectralEdit)
    if spectral:
        write_figure(folder / "spectra.png", plots.spectra(edit))
    for name, contributions in results.items():
        write_figure(folder / f"{name}.png", contributions.plot())
    write_json(
        folder / "results.json",
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
    write_atomically(folder / "report.md", "\n".join(sections))


def about_edit(edit: Edit) -> dict[str, Any]:
    """What an edit says of itself."""
    about = {"method": type(edit).__name__, "site": edit.site, "layers": list(edit.layers)}
    if isinstance(edit, SpectralEdit):
        about |= {"feature": edit.feature.name, "options": edit.options, "n": edit.n}
    return about | {"provenance": getattr(edit, "provenance", {})}


def write_effect(folder: Path, model: Any, effect: Effect, settings: dict[str, Any]) -> None:
    """Write results.json, report.md and the figure of an effect alone."""
    write_figure(folder / "effect.png", effect.plot())
    about = {"settings": settings, "model": Lens.of(model).record, "versions": versions()}
    write_json(folder / "results.json", {**effect_numbers(effect), **about})
    described = ", ".join(f"{name} {value}" for name, value in settings.items())
    write_atomically(
        folder / "report.md", f"# Effect of the edit\n\n{effect}\n\n![effect](effect.png)\n\nSettings: {described}\n"
    )


def section(contributions: Contributions, rows: int = 10) -> list[str]:
    """A result in words and a table of its largest values."""
    frame = contributions.to_frame()
    table = frame.loc[frame["value"].abs().sort_values(ascending=False).index[:rows]]
    # Columns that nothing in the table uses say nothing.
    table = table.dropna(axis=1, how="all").loc[:, lambda kept: ~(kept == "").all()]
    parts = [f"**{contributions.method}**: {contributions}\n", markdown_table(table.to_dict(orient="records")) + "\n"]
    if isinstance(contributions, DirectionContributions):
        for label, description in contributions.descriptions.items():
            if description.fires_on:
                named = ", ".join(f"{index} ({value:+.2f})" for index, value in description.fires_on)
                parts.append(f"- {'.'.join(map(str, label))} fires on demonstrations {named}")
        parts.append("")
    return parts


def effect_numbers(effect: Effect) -> dict[str, Any]:
    """Every number of an effect."""
    return {
        "effect": effect.effect,
        "before": effect.before,
        "after": effect.after,
        "interval": effect.interval,
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
        "control_values": contributions.control_values,
        "item_values": contributions.item_values,
        "item_effects": contributions.item_effects,
    }
    if isinstance(contributions, DirectionContributions):
        described = contributions.descriptions
        numbers["descriptions"] = {".".join(map(str, label)): about for label, about in described.items()}
    return numbers
