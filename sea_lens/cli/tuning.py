"""The command `tune`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .._support.files import remove
from ..errors import InputError
from ..evaluation.choosing import check_choose, check_scores
from ..evaluation.run import Task
from ..evaluation.tuning import tune
from ..evaluation.tuning_results import EDIT, RESULTS
from ..models.sites import site_names
from ..models.token_positions import check_positions
from ..spectral.features import feature_map
from ..spectral.ranks import Size
from ..spectral.site_stores import store_folders
from ..texts.demonstrations import Demonstrations
from . import options as opt
from .evaluation import BenchmarkOption, DataOption
from .files import check_output_file, output_folder

console = Console()

_CENTRES = {"no": (False,), "yes": (True,), "both": (False, True)}


def run(
    model: opt.ModelOption,
    demonstrations: Annotated[Path, typer.Option("--demonstrations", help="What to fit from.")],
    benchmark: BenchmarkOption,
    maximise: Annotated[str, typer.Option(help="The score to make largest, such as mc2.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the chosen edit and results.json.")],
    data: DataOption = None,
    form: opt.FormatOption = "jsonl",
    limit: opt.LimitOption = None,
    side_effects: Annotated[
        str | None, typer.Option(help="Plain text or rows of it: its perplexity and KL count as scores too.")
    ] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="Largest allowed value of a score, such as kl=0.1; may be given often.")
    ] = None,
    energies: Annotated[str, typer.Option(help="Energies to try, with commas.")] = "0.99,0.999,0.9999",
    centre: Annotated[str, typer.Option(help="Centre: no, yes or both.")] = "both",
    layers: Annotated[list[str] | None, typer.Option(help="Layers to try, as in effect; may be given often.")] = None,
    strengths: Annotated[str, typer.Option(help="Strengths to try, with commas.")] = "0.5,1,1.5",
    features: Annotated[str, typer.Option(help="Feature maps to try, with commas.")] = "identity",
    site: Annotated[str, typer.Option(help="Sites to try, with commas.")] = "mlp_out",
    positions: opt.PositionsOption = None,
    choose: Annotated[
        str, typer.Option(help="best, or one_standard_error: the weakest edit that is as good.")
    ] = "best",
    held_out: Annotated[
        Path | None, typer.Option(help="Items that nothing is chosen on, to measure the chosen edit on once.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder to keep the activations in, as in fit; one for each of several sites.")
    ] = None,
    batch_size: opt.BatchSizeOption = 16,
    backend: opt.BackendOption = "auto",
    device: opt.DeviceOption = None,
    dtype: opt.DtypeOption = "auto",
    device_map: opt.DeviceMapOption = None,
    max_memory: opt.MaxMemoryOption = None,
) -> None:
    """Choose an edit's options on a dev split: the best of a grid that a budget allows."""
    opt.check_format(form)
    if centre not in _CENTRES:
        raise InputError(f"--centre {centre!r}: expected one of {', '.join(_CENTRES)}")
    grid: dict[str, Any] = {
        "energies": opt.read_numbers(energies, "--energies"),
        "centres": _CENTRES[centre],
        "layers": [opt.read_layers(choice) for choice in layers or ["all"]],
        "strengths": opt.read_numbers(strengths, "--strengths"),
        "features": [name.strip() for name in features.split(",")],
    }
    for energy in grid["energies"]:
        Size.of(energy)
    for name in grid["features"]:
        feature_map(name)
    check_choose(choose)
    sites = site_names([name.strip() for name in site.split(",")])
    # Of a single site the store is the folder itself.
    tried = sites if len(sites) > 1 else sites[0]
    positions = "all" if positions is None else positions
    check_positions(positions)
    limits = dict(given := [_limit(text) for text in budget or ()])
    if len(limits) < len(given):
        raise InputError(f"--budget {', '.join(budget or ())}: expected each score once")
    inputs = {"--demonstrations": demonstrations, "--data": data, "--side-effects": side_effects, "--model": model}
    inputs |= {"--held-out": held_out, "--store": store}
    folder = output_folder(out, inputs)
    journal = folder / f"{RESULTS}.partial"
    for written in (folder / EDIT, journal):
        check_output_file(written, inputs)
    if store is not None:
        store_folders(store, tried)
    demos: Demonstrations = opt.read_demonstrations(demonstrations, form, None)
    task = Task.read(benchmark, data, limit=limit)
    side = None if side_effects is None else Task.read("perplexity", side_effects)
    check_scores([maximise, *limits], [task] if side is None else [task, side])
    unseen = None if held_out is None else Task.read(benchmark, held_out)
    loaded = opt.open_model(model, backend, device, dtype, device_map, max_memory)
    if journal.exists():
        console.print(f"going on from {journal}", highlight=False, soft_wrap=True)
    found = tune(
        loaded,
        demos,
        task,
        maximise=maximise,
        side_effects=side,
        budget=limits,
        site=tried,
        positions=positions,
        choose=choose,
        held_out=unseen,
        batch_size=batch_size,
        journal=journal,
        store=store,
        **grid,
    )
    found.save(folder)
    remove(journal)
    shown = ["site", "feature", "energy", "centre", "layers", "strength", *found.unedited]
    table = Table(*shown, title=f"{benchmark}, {len(task.items)} items: {found.rule}")
    for row in found.table.to_dict("records"):
        style = "bold" if row["chosen"] else None
        cells = (f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in shown)
        table.add_row(*(cell.replace("[", "\\[") for cell in cells), style=style)
    console.print(table)
    console.print(str(found), highlight=False, markup=False, soft_wrap=True)
    console.print(f"wrote {folder}", highlight=False, soft_wrap=True)


def _limit(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InputError(f"--budget {text!r}: expected a score and its largest value, such as kl=0.1")
    return name.strip(), opt.read_number(value, f"--budget {name.strip()}")
