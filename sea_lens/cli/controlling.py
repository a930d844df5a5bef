"""The command `control`: edits to compare an edit with, as files."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .._support.arguments import LARGEST
from ..errors import InputError
from ..methods.loading import load_edit
from ..spectral.controls import permuted, randomised, resampled
from ..spectral.edit import SpectralEdit
from . import options as opt
from .files import check_output_file, output_folder

console = Console()
KINDS = ("permuted", "random", "resampled")


def run(
    edit: opt.EditOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for the control edits.")],
    kind: Annotated[str, typer.Option(help=f"{', '.join(KINDS)}.")] = "permuted",
    draws: Annotated[int, typer.Option(help="How many; 19 for p-values down to 0.05.", min=1, max=LARGEST)] = 19,
    seed: Annotated[int, typer.Option(help="Of the draws.", min=0, max=LARGEST)] = 0,
    model: Annotated[
        str | None, typer.Option("--model", help="The model that the edit was fitted on; not for random.")
    ] = None,
    demonstrations: Annotated[
        Path | None, typer.Option("--demonstrations", help="What it was fitted from; not for random.")
    ] = None,
    form: opt.FormatOption = "jsonl",
    limit: opt.LimitOption = None,
    batch_size: opt.BatchSizeOption = 16,
    backend: opt.BackendOption = "auto",
    device: opt.DeviceOption = None,
    dtype: opt.DtypeOption = "auto",
    device_map: opt.DeviceMapOption = None,
    max_memory: opt.MaxMemoryOption = None,
) -> None:
    """Write control edits: fitted to shuffled or resampled demonstrations, or random subspaces of the same ranks."""
    if kind not in KINDS:
        raise InputError(f"--kind {kind!r}: expected one of {', '.join(KINDS)}")
    opt.check_format(form)
    loaded = load_edit(edit)
    if not isinstance(loaded, SpectralEdit):
        raise InputError(f"--edit {edit}: only a spectral edit has controls, got {type(loaded).__name__}")
    needed = {"--model": model, "--demonstrations": demonstrations}
    if kind == "random":
        if given := [name for name, value in needed.items() if value is not None]:
            raise InputError(f"{', '.join(given)}: random subspaces are drawn from the edit alone: expected neither")
    elif missing := [name for name, value in needed.items() if value is None]:
        raise InputError(f"--kind {kind}: the edit is fitted anew: expected {' and '.join(missing)}")
    if out.is_dir() and any(out.glob("*.safetensors")):
        raise InputError(f"--out {out}: it holds edits already, which would be taken for controls of this one")
    folder = output_folder(out, {"--edit": edit, **needed})
    paths = [folder / f"{kind}_{number:0{len(str(draws - 1))}}.safetensors" for number in range(draws)]
    for path in paths:
        check_output_file(path, {"--edit": edit, "--demonstrations": demonstrations})
    edits: list[Any]
    if model is None or demonstrations is None:
        edits = [randomised(loaded, seed * draws + number).with_defaults() for number in range(draws)]
    else:
        demos = opt.read_demonstrations(demonstrations, form, limit)
        opened = opt.open_model(model, backend, device, dtype, device_map, max_memory)
        made = permuted if kind == "permuted" else resampled
        edits = made(opened, loaded, demos, draws, seed, batch_size=batch_size, progress=True)
    for path, control in zip(paths, edits, strict=True):
        control.save(path)
    console.print(f"wrote {draws} edits to {folder}", highlight=False, markup=False, soft_wrap=True)
