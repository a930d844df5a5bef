"""The command `export`: a model with an edit in its weights, which needs nothing of sea_lens's."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from .._support.json_files import plain, write_json
from .._support.versions import versions
from ..edits.foldable import SavedActivationEdit
from ..edits.folding import Fold
from ..errors import FileError, InputError
from ..measure.effects import effect
from ..models.huggingface import failures_named, load_tokenizer, quiet
from ..models.load import DTYPES, resolved
from ..testbed.bed import PATH as TESTBED
from . import options as opt
from .files import output_folder

console = Console()
ABOUT = "sea_lens.json"


def run(
    model: opt.ModelOption,
    edit: opt.EditOption,
    out: Annotated[Path, typer.Option("--out", help="New folder for the checkpoint.")],
    layers: opt.LayersOption = None,
    strength: opt.StrengthOption = None,
    combine: opt.CombineOption = None,
    positions: opt.PositionsOption = None,
    demonstrations: Annotated[
        Path | None,
        typer.Option("--demonstrations", help="Where the edit keeps norms: what the scale of each layer is fitted to."),
    ] = None,
    form: opt.FormatOption = "jsonl",
    limit: opt.LimitOption = None,
    contrasts: Annotated[
        Path | None, typer.Option("--contrasts", help="Tell the effect of the edit and of what was folded on these.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: that of the checkpoint.")] = "auto",
    device: opt.DeviceOption = None,
    shard_size: Annotated[str, typer.Option(help="Largest file of weights.")] = "5GB",
) -> None:
    """Write the edit into the weights of its site, as a plain checkpoint for transformers, vLLM, llama.cpp and others.

    An edit that keeps norms (combine 'norm', the default) has no exact fold: give --combine average, or
    --demonstrations for the nearest one, of which is told how near it is.
    """
    opt.check_format(form)
    loaded, where = opt.edit_and_where(edit, layers, strength, combine, positions)
    if not isinstance(loaded, SavedActivationEdit):
        raise InputError(f"--edit {edit}: {type(loaded).__name__} acts on the {loaded.site}, which no fold writes")
    _refuse_full(out)
    out = output_folder(out, {"--edit": edit, "--model": model, "--demonstrations": demonstrations})
    demos = None if demonstrations is None else opt.read_demonstrations(demonstrations, form, limit)
    items = None if contrasts is None else opt.read_contrasts(contrasts, None)
    name = resolved(str(TESTBED) if model == "testbed" else model)
    with quiet():
        tokenizer = load_tokenizer(name)
    hf_model = _load(name, dtype, device)
    options = {key: where[key] for key in ("layers", "strength", "combine", "positions")}
    folded = loaded.fold(hf_model, demonstrations=demos, **options, in_place=True)
    report: Fold = folded.sea_lens_fold
    console.print(str(report), highlight=False, markup=False, soft_wrap=True)
    about = {
        "model": name if not Path(name).is_dir() else Path(name).name,
        "edit": {"file": edit.name, "sha256": loaded.digest, "provenance": loaded.provenance},
        **options,
        "scales": report.scales,
        "deviation": report.deviation,
        "kl": report.kl,
    }
    if items is not None:
        about["effects"] = _effects(name, device, loaded, report, items, options)
    with quiet():
        folded.save_pretrained(out, max_shard_size=shard_size)
        tokenizer.save_pretrained(out)
    write_json(out / ABOUT, plain({**about, "versions": versions()}))
    console.print(f"wrote {out}", highlight=False, markup=False, soft_wrap=True)


def _refuse_full(out: Path) -> None:
    """Refuse a folder that holds something, before any work is done.

    Raises:
        FileError: it is a file, or holds files.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileError(f"--out {out}: expected a new or an empty folder, since weights of another model may not mix")


def _load(name: str, dtype: str, device: str | None) -> Any:
    from transformers import AutoModelForCausalLM

    known = {str(one).removeprefix("torch."): one for one in DTYPES}
    if dtype != "auto" and dtype not in known:
        raise InputError(f"--dtype {dtype!r}: expected auto, float32, bfloat16 or float16")
    with failures_named(name), quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=known.get(dtype, "auto"))
        return loaded.to(torch.device(device or "cpu")).eval()


def _effects(name: str, device: str | None, edit: Any, report: Fold, items: Any, options: Any) -> dict[str, float]:
    """The effects of the edit and of what was folded, printed."""
    model = opt.open_model(name, "auto", device, "auto")
    whole, held = effect(model, edit, items, **options), effect(model, report.edit, items)
    console.print(f"effect of the edit: {whole}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"effect of the map that the weights hold: {held}", highlight=False, markup=False, soft_wrap=True)
    if whole.interval.low > 0 or whole.interval.high < 0:
        share = held.effect / whole.effect
        console.print(f"that is {share:.0%} of the edit's effect", highlight=False, markup=False, soft_wrap=True)
    return {"edit": whole.effect, "folded": held.effect}
