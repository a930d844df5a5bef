"""The command `harness`: tasks of EleutherAI's lm-evaluation-harness on a model with an edit."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .._support.arguments import LARGEST
from .._support.files import write_atomically
from .._support.json_files import plain
from .._support.versions import versions
from ..edits.saved import SavedEdit
from ..errors import InputError, MissingPackageError
from ..evaluation.harness import harness_model
from ..models.lens import Lens
from . import options as opt
from .evaluation import EditedOption
from .files import RESULTS, output_folder

console = Console()


def run(
    model: opt.ModelOption,
    tasks: Annotated[str, typer.Option("--tasks", help="Names of the harness's tasks, with commas.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for results.json, in the harness's own form.")],
    edit: EditedOption = None,
    include_path: Annotated[
        Path | None, typer.Option("--include-path", help="Folder with tasks of your own (YAML), beside the harness's.")
    ] = None,
    limit: opt.LimitOption = None,
    num_fewshot: Annotated[int | None, typer.Option(help="Examples in front of each question.", min=0)] = None,
    bootstrap: Annotated[int, typer.Option(help="The harness's draws for its errors.", min=0, max=LARGEST)] = 100000,
    samples: Annotated[bool, typer.Option("--samples", help="Write every item's answers too.")] = False,
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
    """Run tasks of lm-evaluation-harness, unedited or under an edit (extra lm-eval)."""
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise InputError(f"--tasks {tasks!r}: expected names of tasks, with commas")
    options = {"layers": layers, "strength": strength, "combine": combine, "positions": positions}
    if edit is None:
        opt.refuse_without_edit(**options)
        loaded_edit, where = None, {}
    else:
        loaded_edit, where = opt.edit_and_where(edit, layers, strength, combine, positions)
    manager = _manager(names, include_path)
    folder = output_folder(out, {"--edit": edit, "--model": model, "--include-path": include_path})
    loaded = opt.open_model(model, backend, device, dtype, device_map, max_memory)
    lm = harness_model(loaded, loaded_edit, **where, batch_size=batch_size, prepend_bos=prepend_bos)
    import lm_eval
    from lm_eval.utils import handle_non_serializable, make_table

    # The harness's decorators hide its arguments from type checkers.
    evaluate: Any = lm_eval.simple_evaluate
    found = evaluate(
        lm,
        tasks=names,
        task_manager=manager,
        limit=limit,
        num_fewshot=num_fewshot,
        bootstrap_iters=bootstrap,
        log_samples=samples,
        verbosity="ERROR",
    )
    digest = loaded_edit.digest if isinstance(loaded_edit, SavedEdit) else None
    about = {"file": None if edit is None else edit.name, "sha256": digest, **where}
    found["sea_lens"] = plain(
        {"model": Lens.of(loaded).record, "edit": about, "prepend_bos": prepend_bos, "versions": versions("lm_eval")}
    )
    write_atomically(folder / RESULTS, json.dumps(found, indent=2, default=handle_non_serializable))
    console.print(make_table(found), highlight=False, markup=False, soft_wrap=True)
    console.print(f"wrote {folder / RESULTS}", highlight=False, markup=False, soft_wrap=True)


def _manager(names: list[str], include_path: Path | None) -> Any:
    """The harness's list of tasks, with those of a folder.

    Raises:
        MissingPackageError: the harness is not installed.
        InputError: it has no task of a name.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingPackageError(
            "the command harness needs EleutherAI's harness: install it with pip install 'sea-lens[lm-eval]'"
        ) from error
    if include_path is not None and not include_path.is_dir():
        raise InputError(f"--include-path {include_path}: no such folder")
    if include_path is not None:
        # The harness's own thousands of tasks take half a minute to list.
        own = TaskManager(include_path=str(include_path), include_defaults=False, verbosity="ERROR")
        if all(own.match_tasks([name]) for name in names):
            return own
    manager = TaskManager(include_path=None if include_path is None else str(include_path), verbosity="ERROR")
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        raise InputError(f"--tasks {', '.join(unknown)}: the harness has no such task (lm-eval ls tasks lists them)")
    return manager
