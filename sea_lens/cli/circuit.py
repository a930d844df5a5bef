"""`sea-lens circuit`: everything that tells why an edit works, on one page, with the control of every number."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .._support.arguments import LARGEST
from .._support.json_files import plain
from .._support.versions import versions
from ..edits.base import Edit
from ..errors import InputError, SeaLensError, SeaLensWarning
from ..evaluation.fingerprints import edit_identity, model_identity
from ..models.lens import Lens
from ..models.reading import Reading
from ..paper.data import drawn
from ..paper.findings import Written
from ..paper.opening import Opening
from ..spectral.controls import has_other_digest, permuted
from ..spectral.edit import SpectralEdit
from ..texts.demonstrations import Contrasts
from . import options as opt
from .circuit_page import Answer, write_page
from .circuit_questions import QUESTIONS, Question, Subject
from .files import output_folder

console = Console()
CONTROLS = 19


def run(
    model: Annotated[str | None, typer.Option("--model", help="Hugging Face name or local folder.")] = None,
    edit: Annotated[
        Path | None, typer.Option("--edit", help="A fitted edit; without it, those of the shipped model.")
    ] = None,
    contrasts: Annotated[
        Path | None, typer.Option("--contrasts", help="JSON Lines with the fields prompt, target, foil.")
    ] = None,
    demonstrations: Annotated[
        Path | None, typer.Option(help="What the edit was fitted from: adds a permutation control to every number.")
    ] = None,
    form: Annotated[str | None, opt.FORMAT] = None,
    control_draws: Annotated[
        int | None, typer.Option(help=f"Permuted edits to compare with; {CONTROLS} by default.", min=0, max=LARGEST)
    ] = None,
    questions: Annotated[
        str | None, typer.Option(help=f"Comma-separated, of {', '.join(q.name for q in QUESTIONS)}; all by default.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Contrasts, spread over all of them.", min=1, max=LARGEST)] = 64,
    out: Annotated[Path, typer.Option("--out", help="Folder for the page.")] = Path("circuit"),
    layers: opt.LayersOption = None,
    strength: opt.StrengthOption = None,
    combine: opt.CombineOption = None,
    positions: opt.PositionsOption = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences at a time: 16, of the shipped model 256.", min=1, max=LARGEST)
    ] = None,
    prepend_bos: opt.PrependBosOption = True,
    backend: opt.BackendOption = "auto",
    device: opt.DeviceOption = None,
    dtype: opt.DtypeOption = "auto",
    device_map: opt.DeviceMapOption = None,
    max_memory: opt.MaxMemoryOption = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1, max=999)] = None,
) -> None:
    """Show the circuit of an edit on one page: layers, directions, heads, ways, how few suffice, beside controls.

    Started again, it goes on where it was.
    """
    import torch

    draws = CONTROLS if control_draws is None else control_draws
    known = [question.name for question in QUESTIONS]
    names = known if questions is None else opt.read_names(questions, "--questions", known)
    chosen = [question for question in QUESTIONS if question.name in names]
    if threads is not None:
        torch.set_num_threads(threads)
    own = {"--model": model, "--edit": edit, "--contrasts": contrasts}
    if edit is None:
        if given := [name for name, value in {**own, "--demonstrations": demonstrations}.items() if value is not None]:
            raise InputError(f"{', '.join(given)} without --edit: expected a fitted edit, or none of them")
        if (layers, strength, combine, positions) != (None, None, None, None):
            raise InputError(
                "the shipped model's edits act where they were chosen to: expected --edit with these options"
            )
        of_model = {
            "--format": form,
            "--no-prepend-bos": None if prepend_bos else False,
            "--device-map": device_map,
            "--max-memory": max_memory,
        }
        if given := [name for name, value in of_model.items() if value is not None]:
            raise InputError(
                f"{', '.join(given)}: the shipped model is read as it is: expected --edit with these options"
            )
        folder = output_folder(out, {})
        opening = Opening(draws=draws, batch_size=batch_size, backend=backend, device=device, dtype=dtype)
        subjects = _shipped(opening, folder, limit)
    else:
        if model is None or contrasts is None:
            raise InputError("--edit needs --model and --contrasts")
        loaded_edit, where = opt.edit_and_where(edit, layers, strength, combine, positions)
        if demonstrations is None and control_draws is not None:
            raise InputError("--control-draws is about demonstrations: expected --demonstrations")
        if demonstrations is None and form is not None:
            raise InputError("--format is about demonstrations: expected --demonstrations")
        form = "jsonl" if form is None else form
        opt.check_format(form)
        if demonstrations is not None:
            if not isinstance(loaded_edit, SpectralEdit):
                raise InputError(
                    f"--demonstrations: only a spectral edit can be fitted anew, {edit} holds another method"
                )
            Reading.recorded(loaded_edit.site, loaded_edit.provenance)
        items = opt.read_contrasts(contrasts, None)
        demos = None if demonstrations is None else opt.read_demonstrations(demonstrations, form, None)
        if demos is not None and has_other_digest(loaded_edit, demos):
            warnings.warn(
                f"{demonstrations}: the edit was not fitted from these {len(demos)} demonstrations, or not in their "
                f"order: fits to them with labels shuffled are no draws like it",
                SeaLensWarning,
                stacklevel=2,
            )
        folder = output_folder(out, {**own, "--demonstrations": demonstrations})
        loaded = opt.open_model(model, backend, device, dtype, device_map, max_memory)
        batch_size = batch_size or 16
        control: Sequence[Edit] = ()
        if demos is not None and isinstance(loaded_edit, SpectralEdit):
            control = permuted(loaded, loaded_edit, demos, draws, batch_size=batch_size)
        picked = Contrasts(items[place] for place in drawn(limit, len(items)))
        subjects = {"": Subject(loaded, loaded_edit, picked, control, where, demos, batch_size, prepend_bos)}
    answers = {name: _answers(chosen, name, subject, folder) for name, subject in subjects.items()}
    page = write_page(answers, subjects, folder)
    console.print(f"page: {page}", highlight=False, soft_wrap=True)


def _shipped(opening: Opening, folder: Path, limit: int) -> dict[str, Subject]:
    """Both edits of the shipped model, as chosen on dev, on its test questions."""
    whole = opening.subject(folder)
    found = {}
    for behaviour in whole.behaviours():
        fitted, asked = whole.fitted(behaviour), whole.contrasts(behaviour)
        picked = Contrasts(asked[place] for place in drawn(limit, len(asked)))
        controls = fitted.shuffled(opening.draws)
        demos = whole.demonstrations(behaviour)
        found[behaviour] = Subject(
            whole.model, fitted.edit, picked, controls, whole.where(behaviour), demos, whole.batch_size
        )
    return found


def _answers(chosen: Sequence[Question], name: str, subject: Subject, folder: Path) -> list[Answer]:
    """Answers that the folder has with the same settings, and all others measured now."""
    import matplotlib.pyplot as plt

    settings = _settings(subject)
    found = []
    for question in chosen:
        file = f"{name}_{question.name}" if name else question.name
        known = Written.read(folder, file)
        if known is not None and known.settings == settings:
            console.print(f"{file}: there already", highlight=False)
            found.append(Answer(question, file, known))
            continue
        console.print(f"{file}: {question.asked}", highlight=False)
        try:
            question.answer(subject).write(folder, file, settings)
            found.append(Answer(question, file, Written.read(folder, file)))
        except SeaLensError as error:
            reason = " ".join(str(error).split())
            console.print(f"{file}: not run: {reason}", highlight=False, markup=False, soft_wrap=True)
            found.append(Answer(question, file, None, reason))
        plt.close("all")
    return found


def _settings(subject: Subject) -> dict[str, Any]:
    """What an answer depends on."""
    return plain(
        {
            "model": model_identity(Lens.of(subject.model)),
            "edit": edit_identity(subject.edit),
            "controls": [edit_identity(one) for one in subject.control],
            "contrasts": subject.contrasts.digest,
            "demonstrations": None if subject.demonstrations is None else subject.demonstrations.digest,
            "draws": subject.draws,
            "where": {name: str(value) for name, value in (subject.where or {}).items()},
            "batch_size": subject.batch_size,
            "prepend_bos": subject.prepend_bos,
            "versions": versions(),
        }
    )
