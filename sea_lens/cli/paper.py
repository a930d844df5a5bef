"""`sea-lens paper`: the paper's tables and figures on a model, and one page of them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .._support.arguments import LARGEST
from ..errors import InputError
from ..paper.checks import checked, planned
from ..paper.items import ITEMS, chosen
from ..paper.opening import Opening
from ..paper.page import counts, write_page
from ..paper.run import run_items
from . import options as opt
from .files import output_folder

console = Console()


def run(
    items: Annotated[
        list[str] | None, typer.Argument(help=f"all, or some of {', '.join(i.name for i in ITEMS)}.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Hugging Face name or folder; the shipped model.")] = "testbed",
    data: Annotated[Path | None, typer.Option(help="Folder of data files; the shipped model has its own.")] = None,
    preset: Annotated[str | None, typer.Option(help="Settings: default, paper or release.")] = None,
    models: Annotated[str | None, typer.Option(help="Comma-separated, for t2; the preset's, or the model.")] = None,
    judge: Annotated[
        str | None, typer.Option(help="TRUTH,INFO: two models that rate answers, for the generations.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Items of each benchmark, and demonstrations.", min=1, max=LARGEST)
    ] = None,
    draws: Annotated[
        int, typer.Option(help="Fits to shuffled demonstrations beside an edit.", min=0, max=LARGEST)
    ] = 19,
    out: Annotated[Path, typer.Option(help="Folder for the findings and the page.")] = Path("paper"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what can run, and what it takes.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="Texts at a time: 16, of the shipped model 256.", min=1, max=LARGEST)
    ] = None,
    backend: opt.BackendOption = "auto",
    device: opt.DeviceOption = None,
    dtype: opt.DtypeOption = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1, max=999)] = None,
) -> None:
    """Run the paper's tables and figures, and show them on one page. Started again, it goes on where it was."""
    import torch

    wanted = chosen(items or ["all"])
    if threads is not None:
        torch.set_num_threads(threads)
    names, judges = (
        tuple(name.strip() for name in (given or "").split(",") if name.strip()) for given in (models, judge)
    )
    opening = Opening(model, data, preset, limit, draws, batch_size, backend, device, dtype, names, judges)
    if data is not None and out.resolve().is_relative_to(data.resolve()):
        raise InputError(f"--out {out} lies in --data {data}: expected a folder outside of what is read")
    folder = output_folder(out, {"--data": data, "--model": model})
    subject = opening.subject(folder)
    if dry_run:
        for check in checked(wanted, subject):
            told = "runs" if check.runs else "does not run"
            why = f"; missing: {' | '.join(check.reasons)}" if check.reasons else ""
            console.print(f"{check.item.name}: {told}{why}", highlight=False, markup=False, soft_wrap=True)
        for told in planned(wanted, opening, subject):
            console.print(told, highlight=False, markup=False, soft_wrap=True)
        return
    outcomes = run_items(
        wanted, opening, folder, subject, lambda told: console.print(told, highlight=False, markup=False)
    )
    page = write_page(outcomes, {**opening.record, "about": subject.about()}, folder)
    asked = [one for one in outcomes if one.item in wanted]
    console.print(f"{counts(asked)}; page: {page}", highlight=False, soft_wrap=True)
    if any(one.broken for one in asked):
        raise typer.Exit(1)
    if all(one.finding is None for one in asked):
        raise typer.Exit(2)
