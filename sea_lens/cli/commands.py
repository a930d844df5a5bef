"""The commands. Each reads its input, refuses what is wrong before any long work, calls the library and prints."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .. import __version__
from .._support.arguments import LARGEST
from .._support.files import remove
from .._support.json_files import plain, write_json
from .._support.versions import versions
from ..contributions.study import Study
from ..errors import InputError
from ..evaluation.fingerprints import edit_identity, model_identity
from ..evaluation.journal import Journal
from ..measure.effects import effect as measure_effect
from ..methods.loading import load_edit
from ..models.check import check_model
from ..models.lens import Lens
from ..models.reading import Reading
from ..spectral.edit import SpectralEdit
from ..testbed.bed import load as load_testbed
from ..testbed.behaviours import BEHAVIOURS
from . import circuit, controlling, evaluation, exporting, fitting, generation, harness, paper, planning, tuning
from . import options as opt
from .attribution import (
    NAMES,
    about_edit,
    beside_controls,
    check_analyses,
    default_analyses,
    run_analyses,
    write_attribution,
    write_effect,
)
from .demo_report import print_demo, write_demo
from .files import RESULTS, check_output_file, output_folder

app = typer.Typer(
    help="Spectral editing of activations for TransformerLens models, and why an edit works.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()


def _version(wanted: bool | None) -> None:
    if wanted:
        console.print(f"sea-lens {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Show version.")
    ] = None,
) -> None:
    pass


@app.command(epilog="Example: [bold]sea-lens demo --out demo[/bold]")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("demo"),
    behaviour: Annotated[str, typer.Option(help=f"What the edit is of: {' or '.join(BEHAVIOURS)}.")] = BEHAVIOURS[0],
    testbed: Annotated[Path, typer.Option(help="Another model that sea_lens.testbed.train wrote.")] = opt.TESTBED,
    choose: Annotated[bool, typer.Option("--choose", help="Choose options on dev anew, some minutes.")] = False,
    backend: opt.BackendOption = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; one is fastest here.", min=1, max=999)] = 1,
) -> None:
    """Fit, apply and explain an edit of the shipped model: the whole job, from nothing."""
    import torch

    from ..testbed.demo import run_demo

    torch.set_num_threads(threads)
    if behaviour not in BEHAVIOURS:
        raise InputError(f"--behaviour {behaviour}: expected {' or '.join(BEHAVIOURS)}")
    if not (testbed / "world.json").is_file():
        raise InputError(f"--testbed {testbed}: expected a folder that sea_lens.testbed.train wrote, with world.json")
    folder = output_folder(out, {"--testbed": testbed})
    bed = load_testbed(backend, testbed)
    result = run_demo(bed, behaviour, anew=choose)
    write_demo(result, bed, folder)
    print_demo(result, folder, console)


app.command("circuit", epilog="Example: [bold]sea-lens circuit --out circuit[/bold]")(circuit.run)
app.command("paper", epilog="Example: [bold]sea-lens paper t1 bias --out paper[/bold]")(paper.run)


app.command(
    "fit",
    epilog="Example: [bold]sea-lens fit --model gpt2 --demonstrations demos.jsonl --out edit.safetensors "
    "--energy 0.99 --centre[/bold]",
)(fitting.run)


@app.command(
    epilog="Example: [bold]sea-lens effect --model gpt2 --edit edit.safetensors --contrasts contrasts.jsonl[/bold]"
)
def effect(
    model: opt.ModelOption,
    edit: opt.EditOption,
    contrasts: opt.ContrastsOption,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for results.json and a figure.")] = None,
    layers: opt.LayersOption = None,
    strength: opt.StrengthOption = None,
    combine: opt.CombineOption = None,
    positions: opt.PositionsOption = None,
    limit: opt.LimitOption = None,
    control: Annotated[
        list[Path] | None,
        typer.Option("--control", help="A control edit, or a folder of them (`control`); may be given several times."),
    ] = None,
    batch_size: opt.BatchSizeOption = 16,
    prepend_bos: opt.PrependBosOption = True,
    backend: opt.BackendOption = "auto",
    device: opt.DeviceOption = None,
    dtype: opt.DtypeOption = "auto",
    device_map: opt.DeviceMapOption = None,
    max_memory: opt.MaxMemoryOption = None,
) -> None:
    """Measure an edit's effect on contrasts, with a paired interval."""
    controls = opt.read_controls(control or [])
    loaded_edit, where = opt.edit_and_where(edit, layers, strength, combine, positions)
    items = opt.read_contrasts(contrasts, limit)
    inputs = {"--edit": edit, "--contrasts": contrasts, "--model": model}
    folder = None if out is None else output_folder(out, inputs)
    loaded = opt.open_model(model, backend, device, dtype, device_map, max_memory)
    common = {"batch_size": batch_size, "prepend_bos": prepend_bos}
    result = measure_effect(loaded, loaded_edit, items, **where, control=controls, **common)
    console.print(str(result), highlight=False, soft_wrap=True)
    if folder is not None:
        write_effect(folder, loaded, result, opt.settings(where, loaded_edit, edit, items, **common))
        console.print(f"wrote {folder}", highlight=False)


@app.command(
    epilog="Example: [bold]sea-lens attribute --model gpt2 --edit edit.safetensors --contrasts contrasts.jsonl "
    "--demonstrations demos.jsonl --out why[/bold]"
)
def attribute(
    model: opt.ModelOption,
    edit: opt.EditOption,
    contrasts: opt.ContrastsOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for the report.")],
    methods: Annotated[
        str | None, typer.Option(help=f"Comma-separated, of {', '.join(NAMES)}; by default all that are cheap enough.")
    ] = None,
    demonstrations: Annotated[
        Path | None,
        typer.Option(help="What the edit was fitted from: adds a permutation control, and what directions fire on."),
    ] = None,
    form: Annotated[str | None, opt.FORMAT] = None,
    control_draws: Annotated[
        int | None, typer.Option(help="Permuted edits to compare with; 19 by default.", min=0, max=LARGEST)
    ] = None,
    layers: opt.LayersOption = None,
    strength: opt.StrengthOption = None,
    combine: opt.CombineOption = None,
    positions: opt.PositionsOption = None,
    limit: opt.LimitOption = None,
    batch_size: opt.BatchSizeOption = 16,
    prepend_bos: opt.PrependBosOption = True,
    backend: opt.BackendOption = "auto",
    device: opt.DeviceOption = None,
    dtype: opt.DtypeOption = "auto",
    device_map: opt.DeviceMapOption = None,
    max_memory: opt.MaxMemoryOption = None,
) -> None:
    """Trace an edit's effect to layers, positions, singular directions and heads."""
    loaded_edit, where = opt.edit_and_where(edit, layers, strength, combine, positions)
    names = None if methods is None else opt.read_names(methods, "--methods", NAMES)
    check_analyses(loaded_edit, names or ())
    if demonstrations is None and (form, control_draws) != (None, None):
        raise InputError("--format and --control-draws are about demonstrations: expected --demonstrations")
    form, control_draws = "jsonl" if form is None else form, 19 if control_draws is None else control_draws
    opt.check_format(form)
    items = opt.read_contrasts(contrasts, limit)
    demos = None
    if demonstrations is not None:
        if not isinstance(loaded_edit, SpectralEdit):
            raise InputError(f"--demonstrations: only a spectral edit can be fitted anew, {edit} holds another method")
        Reading.recorded(loaded_edit.site, loaded_edit.provenance)
        demos = opt.read_demonstrations(demonstrations, form, None)
    inputs = {"--edit": edit, "--contrasts": contrasts, "--demonstrations": demonstrations, "--model": model}
    folder = output_folder(out, inputs)
    unfinished = folder / f"{RESULTS}.partial"
    check_output_file(unfinished, inputs)
    loaded = opt.open_model(model, backend, device, dtype, device_map, max_memory)
    common: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos}
    study = Study.of(loaded, loaded_edit, items, **where, **common, progress=True)
    if names is None:
        names = default_analyses(study)
        for left_out in sorted({*NAMES} - {*names}):
            console.print(f"left out: {left_out} (name it by --methods to have it)", highlight=False)
    settings = opt.settings(where, loaded_edit, edit, items, **common)
    if demos is not None:
        settings["demonstrations"] = {"n": len(demos), "sha256": demos.digest, "control_draws": control_draws}
    identity = {"model": model_identity(study.lens), "edit": edit_identity(loaded_edit), "settings": settings}
    if unfinished.exists():
        console.print(f"going on from {unfinished}", highlight=False, soft_wrap=True)
    journal = Journal(unfinished, {**identity, "analyses": names, "versions": versions()}, "attribution")
    results = run_analyses(study, names, demos, control_draws, journal)
    write_attribution(folder, loaded, loaded_edit, study.effect, results, settings)
    remove(unfinished)
    console.print(str(beside_controls(study.effect, results)), highlight=False, soft_wrap=True)
    for contributions in results.values():
        console.print(str(contributions), highlight=False, markup=False, soft_wrap=True)
    console.print(f"wrote {folder}", highlight=False)


app.command(
    "generate",
    epilog="Example: [bold]sea-lens generate --model gpt2 --edit edit.safetensors --prompt 'The sky is' "
    "--compare[/bold]",
)(generation.run)


app.command(
    "evaluate",
    epilog="Example: [bold]sea-lens evaluate --model gpt2 --edit edit.safetensors --benchmark truthfulqa "
    "--data mc_task.json --out edited.json[/bold]",
)(evaluation.run)
app.command(epilog="Example: [bold]sea-lens compare unedited.json edited.json --out changes[/bold]")(evaluation.compare)


app.command(
    "control",
    epilog="Example: [bold]sea-lens control --edit edit.safetensors --model gpt2 --demonstrations demos.jsonl "
    "--out controls[/bold]",
)(controlling.run)


app.command(
    "export",
    epilog="Example: [bold]sea-lens export --model gpt2 --edit edit.safetensors --combine average --out edited[/bold]",
)(exporting.run)


app.command(
    "harness",
    epilog="Example: [bold]sea-lens harness --model gpt2 --edit edit.safetensors --tasks arc_easy,piqa "
    "--out harness[/bold]",
)(harness.run)


app.command(
    "plan",
    epilog="Example: [bold]sea-lens plan --model gpt2 --demonstrations demos.jsonl --device cuda --memory 24GB[/bold]",
)(planning.run)


app.command(
    "tune",
    epilog="Example: [bold]sea-lens tune --model gpt2 --demonstrations demos.jsonl --benchmark truthfulqa "
    "--data dev.json --maximise mc2 --out tuned[/bold]",
)(tuning.run)


@app.command(epilog="Example: [bold]sea-lens check --model gpt2 --backend hooked[/bold]")
def check(
    model: opt.ModelOption,
    out: Annotated[Path | None, typer.Option("--out", help="The table to write (JSON).")] = None,
    backend: opt.BackendOption = "auto",
    device: opt.DeviceOption = None,
    dtype: opt.DtypeOption = "auto",
    device_map: opt.DeviceMapOption = None,
    max_memory: opt.MaxMemoryOption = None,
) -> None:
    """Is the model what it should be, and does what is done to it work? Exit status 1 where something is not."""
    if out is not None:
        check_output_file(out, {"--model": model})
    loaded = opt.open_model(model, backend, device, dtype, device_map, max_memory)
    report = check_model(loaded)
    console.print(f"{Lens.of(loaded).name}, {Lens.of(loaded).backend}", highlight=False, markup=False)
    console.print(str(report), highlight=False, markup=False, soft_wrap=True)
    if out is not None:
        content = {"model": Lens.of(loaded).record, "ok": report.ok, "facts": report.facts, "versions": versions()}
        write_json(out, plain(content))
        console.print(f"wrote {out}", highlight=False, markup=False, soft_wrap=True)
    if not report.ok:
        raise typer.Exit(1)


@app.command(epilog="Example: [bold]sea-lens inspect edit.safetensors[/bold]")
def inspect(edit: Annotated[Path, typer.Argument(help="A fitted edit (safetensors).")]) -> None:
    """Show what a fitted edit is: site, ranks, options, and where it came from."""
    loaded = load_edit(edit)
    if isinstance(loaded, SpectralEdit):
        fitting.print_ranks(loaded)
    about = about_edit(loaded)
    for name, value in {**about, **about.pop("provenance")}.items():
        console.print(f"{name}: {value}", highlight=False, markup=False, soft_wrap=True)
