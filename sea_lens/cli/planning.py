"""The command `plan`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .._support.arguments import LARGEST
from .._support.json_files import plain
from ..errors import InputError
from ..evaluation.registry import BENCHMARKS
from ..evaluation.run import Task
from ..planning.planned_steps import STEPS
from ..planning.planner import plan
from ..testbed.bed import PATH as TESTBED
from . import options as opt

console = Console()


def run(
    model: Annotated[
        str, typer.Option("--model", help="Folder with config.json (weights need not be there) or Hugging Face name.")
    ],
    demonstrations: Annotated[
        Path | None, typer.Option("--demonstrations", help="What will be fitted; lengths are assumed without it.")
    ] = None,
    form: opt.FormatOption = "jsonl",
    contrasts: Annotated[
        Path | None, typer.Option("--contrasts", help="What effects will be measured on; else the demonstrations.")
    ] = None,
    benchmark: Annotated[str | None, typer.Option(help=f"One of {', '.join(BENCHMARKS)}.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="The benchmark's file.")] = None,
    site: opt.SiteOption = "mlp_out",
    layers: opt.FittedLayersOption = "all",
    rank: Annotated[
        int | None, typer.Option(help="Directions of each side; by default a few dozen.", min=1, max=LARGEST)
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="What there is, such as 24GB or 80GiB; by default what this machine has.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation.", min=1, max=LARGEST)] = 32,
    tokens_per_batch: Annotated[
        int | None, typer.Option(help="Tokens of a pass that reads demonstrations, at most.", min=1, max=LARGEST)
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help=f"Some of, with ; between them: {'; '.join(STEPS)}; all by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON, in bytes.")] = False,
    limit: opt.LimitOption = None,
    batch_size: opt.BatchSizeOption = 16,
    prepend_bos: opt.PrependBosOption = True,
    backend: opt.BackendOption = "auto",
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda, here or elsewhere; by default a GPU if there is one.")
    ] = None,
    dtype: opt.DtypeOption = "auto",
) -> None:
    """What fits where: memory, passes and disk of every step, before any weight is read."""
    opt.check_format(form)
    if (benchmark is None) != (data is None):
        raise InputError("--benchmark and --data: expected both or none")
    demos = None if demonstrations is None else opt.read_demonstrations(demonstrations, form, limit)
    pairs = None if contrasts is None else opt.read_contrasts(contrasts, limit)
    task = None if benchmark is None else Task.read(benchmark, data, limit=limit)
    found = plan(
        str(TESTBED) if model == "testbed" else model,
        demos,
        pairs,
        site,
        opt.read_layers(layers),
        rank=rank,
        backend=backend,
        device=device,
        dtype=dtype,
        memory=memory,
        batch_size=batch_size,
        tokens_per_batch=tokens_per_batch,
        max_new_tokens=max_new_tokens,
        prepend_bos=prepend_bos,
        benchmark=task,
        steps=None if steps is None else [name.strip() for name in steps.split(";")],
    )
    if as_json:
        typer.echo(json.dumps(plain(found.record), indent=2))
    else:
        console.print(str(found), highlight=False, markup=False, soft_wrap=True)
