"""The command `generate`."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .._support.arguments import LARGEST
from ..edits.generation import generate as generate_texts
from ..edits.generation import stop_texts
from ..models.sampling import Sampling
from . import options as opt
from .evaluation import EditedOption

console = Console()


def run(
    model: opt.ModelOption,
    prompt: Annotated[list[str], typer.Option("--prompt", help="May be given several times.")],
    edit: EditedOption = None,
    compare: Annotated[bool, typer.Option("--compare", help="The unedited model beside the edited one.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation in tokens.", min=1, max=LARGEST)] = 32,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token, above 0 tokens are drawn.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the most probable tokens of this probability.")] = 1,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many of the most probable tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="A text that ends a continuation; may be given several times.")
    ] = None,
    layers: opt.LayersOption = None,
    strength: opt.StrengthOption = None,
    combine: opt.CombineOption = None,
    positions: opt.PositionsOption = None,
    batch_size: opt.BatchSizeOption = 16,
    prepend_bos: opt.PrependBosOption = True,
    backend: opt.BackendOption = "auto",
    device: opt.DeviceOption = None,
    dtype: opt.DtypeOption = "auto",
    device_map: opt.DeviceMapOption = None,
    max_memory: opt.MaxMemoryOption = None,
) -> None:
    """Continue prompts, unedited or under an edit: greedily, or drawing tokens."""
    Sampling(temperature, top_p, top_k, seed)
    stops = stop_texts(stop or ())
    chosen: dict[str, Any] = {}
    if edit is not None:
        loaded_edit, where = opt.edit_and_where(edit, layers, strength, combine, positions)
        chosen = {"edit": loaded_edit, **where}
    else:
        given = {"layers": layers, "strength": strength, "combine": combine, "positions": positions}
        opt.refuse_without_edit(compare=compare or None, **given)
    loaded = opt.open_model(model, backend, device, dtype, device_map, max_memory)
    common: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stops,
        "prepend_bos": prepend_bos,
        "batch_size": batch_size,
    }
    found = generate_texts(loaded, prompt, **chosen, **common)
    if not compare:
        for text, continuation in zip(prompt, found, strict=True):
            console.print(text + continuation, highlight=False, markup=False, soft_wrap=True)
        return
    table = Table("prompt", "unedited", "edited", show_lines=True)
    for row in zip(prompt, generate_texts(loaded, prompt, **common), found, strict=True):
        table.add_row(*(text.replace("[", "\\[") for text in row))
    console.print(table)
