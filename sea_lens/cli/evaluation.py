"""The commands `evaluate` and `compare`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .._support.arguments import LARGEST
from .._support.files import remove
from .._support.json_files import write_json
from ..errors import FileError, InputError
from ..evaluation.registry import BENCHMARKS
from ..evaluation.results import Evaluation
from ..evaluation.results import compare as compare_evaluations
from ..evaluation.run import Task, evaluate
from ..plots.saving import write_figure
from ..texts.prompts import named_prompts
from . import options as opt
from .files import check_output_file, output_folder

CHATS: dict[str, bool | str] = {"auto": "auto", "yes": True, "no": False}
console = Console()

BenchmarkOption = Annotated[str, typer.Option("--benchmark", help=f"One of {', '.join(BENCHMARKS)}.")]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="The benchmark's file, or hf:owner/name; by default its data set on the hub."),
]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", help=f"A .json file with a prompt, or one of {', '.join(named_prompts())}.")
]
EditedOption = Annotated[Path | None, typer.Option("--edit", help="A fitted edit (safetensors); none by default.")]


def run(
    model: opt.ModelOption,
    benchmark: BenchmarkOption,
    out: Annotated[Path, typer.Option("--out", help="The results to write (JSON).")],
    data: DataOption = None,
    edit: EditedOption = None,
    prompt: PromptOption = None,
    chat: Annotated[str, typer.Option(help="Use the tokenizer's chat template: auto, yes or no.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(help="Longest generated answer in tokens.", min=1, max=LARGEST)] = 256,
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
    """Run a benchmark, unedited or under an edit. Interrupted and started again, it goes on where it was."""
    if chat not in CHATS:
        raise InputError(f"--chat {chat!r}: expected one of {', '.join(CHATS)}")
    # Of a folder too, which has no name of its own in "." and is refused below.
    journal = out.parent / f"{out.name}.partial"
    inputs = {"--data": data, "--edit": edit, "--prompt": prompt, "--model": model}
    for written in (out, journal):
        check_output_file(written, inputs)
    task = Task.read(benchmark, data, prompt=prompt, limit=limit)
    where: dict[str, Any] = {}
    loaded_edit = None
    if edit is not None:
        loaded_edit, where = opt.edit_and_where(edit, layers, strength, combine, positions)
    else:
        opt.refuse_without_edit(layers=layers, strength=strength, combine=combine, positions=positions)
    loaded = opt.open_model(model, backend, device, dtype, device_map, max_memory)
    if journal.exists():
        console.print(f"going on from {journal}", highlight=False, soft_wrap=True)
    evaluation = evaluate(
        loaded,
        task,
        edit=loaded_edit,
        **where,
        chat=CHATS[chat],
        batch_size=batch_size,
        prepend_bos=prepend_bos,
        max_new_tokens=max_new_tokens,
        journal=journal,
    )
    evaluation.save(out)
    remove(journal)
    table = Table("score", "value", "95 % interval", title=_title(evaluation))
    for name, row in evaluation.table().iterrows():
        table.add_row(str(name), f"{row.score:.4g}", f"[{row.low:.4g}, {row.high:.4g}]".replace("[", "\\["))
    console.print(table)
    cut = sum(item.get("cut_tokens", 0) > 0 for item in evaluation.items)
    if cut:
        console.print(f"{cut} items lost tokens at the left of prompts longer than the context", highlight=False)
    console.print(f"wrote {out}", highlight=False, soft_wrap=True)


def compare(
    before: Annotated[Path, typer.Argument(help="Results of `evaluate`, such as of the unedited model.")],
    after: Annotated[Path, typer.Argument(help="Results on the same items, such as of the edited model.")],
    control: Annotated[
        list[Path] | None, typer.Option("--control", help="Results under a control; may be given several times.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for results.json and a figure.")] = None,
) -> None:
    """Compare two evaluations score by score, with paired intervals."""
    read = {"BEFORE": before, "AFTER": after} | {f"--control {path}": path for path in control or ()}
    folder = None if out is None else output_folder(out, read)
    if control and {before, after} & {*control}:
        raise FileError(f"--control {control[0]}: expected other results than those compared")
    comparison = compare_evaluations(
        Evaluation.load(before), Evaluation.load(after), controls=[Evaluation.load(path) for path in control or ()]
    )
    frame = comparison.to_frame()
    table = Table("score", "before", "after", "difference", "95 % interval", title=_title(comparison.before))
    if control:
        table.add_column("controls")
    for name, row in frame.iterrows():
        cells = [f"{row.before:.4g}", f"{row.after:.4g}", f"{row.difference:+.4g}"]
        cells.append(f"\\[{row.low:+.4g}, {row.high:+.4g}]")
        if control:
            cells.append(f"{row.control_low:+.4g} to {row.control_high:+.4g}")
        table.add_row(str(name), *cells)
    console.print(table)
    if folder is not None:
        write_json(folder / "results.json", {"scores": frame.to_dict("index"), "files": [str(before), str(after)]})
        write_figure(folder / "differences.png", comparison.plot())
        console.print(f"wrote {folder}", highlight=False, soft_wrap=True)


def _title(evaluation: Evaluation) -> str:
    return f"{evaluation.benchmark.name}, {len(evaluation.items)} items"
