"""Options that several commands share, and how their texts are read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .._support.arguments import LARGEST, as_number
from ..edits.base import Edit
from ..edits.saved import SavedEdit
from ..edits.where import LayerChoice, check_layer_choice
from ..errors import FileError, InputError
from ..methods.loading import load_edit
from ..models.load import load_model
from ..models.sites import SITES
from ..models.token_positions import POSITIONS
from ..planning.quantities import read_bytes
from ..spectral.arithmetic import COMBINES
from ..spectral.features import FEATURE_MAPS
from ..testbed.bed import PATH as TESTBED
from ..texts.demonstrations import Contrasts, Demonstrations

ModelOption = Annotated[
    str, typer.Option("--model", help="Hugging Face name or local folder; 'testbed' is the shipped model.")
]
BackendOption = Annotated[str, typer.Option(help="TransformerLens backend: auto, hooked or bridge.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, …; by default a GPU if there is one.")]
DtypeOption = Annotated[
    str, typer.Option(help="float32, bfloat16, float16, or auto: float32 on a CPU, on a GPU that of the weights.")
]
DeviceMapOption = Annotated[
    str | None,
    typer.Option(
        help="auto, balanced, sequential: over all GPUs, then CPU and disk; disk: a block at a time; no --device."
    ),
]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option(help="How much of each device --device-map may take, such as 0=20GiB,cpu=60GiB; else what is free."),
]
BatchSizeOption = Annotated[int, typer.Option(help="Sequences at a time.", min=1, max=LARGEST)]
PrependBosOption = Annotated[bool, typer.Option(help="One BOS in front of every text.")]
EditOption = Annotated[Path, typer.Option("--edit", help="A fitted edit of any method (safetensors).")]
ContrastsOption = Annotated[Path, typer.Option("--contrasts", help="JSON Lines with the fields prompt, target, foil.")]
FittedLayersOption = Annotated[str, typer.Option(help="all, first-L, last-L, or a list such as 3,5.")]
LayersOption = Annotated[
    str | None,
    typer.Option(help="all, first-L, last-L, signature-L, or a list such as 3,5; what the edit remembers, or all."),
]
StrengthOption = Annotated[
    float | None, typer.Option(help="α: 1 is the edit as fitted, 0 none; what the edit remembers, or 1.")
]
PositionsOption = Annotated[
    str | None,
    typer.Option(help=f"Where in a text: {', '.join(POSITIONS)}; what the edit remembers, or all."),
]
CombineOption = Annotated[
    str | None,
    typer.Option(help=f"For a spectral edit one of {', '.join(COMBINES)}; the first by default."),
]
SiteOption = Annotated[str, typer.Option(help=f"What is edited: {', '.join(SITES)}.")]
FeatureOption = Annotated[str, typer.Option(help=f"Feature map: {', '.join(FEATURE_MAPS)}.")]
FORMAT = typer.Option("--format", help="jsonl (neutral, positive, negative; the default), halueval, truthfulqa or bbq.")
FormatOption = Annotated[str, FORMAT]
LimitOption = Annotated[int | None, typer.Option(help="Use only the first rows.", min=1, max=LARGEST)]

# More than the number of any layer has, and fewer than Python refuses to read.
_DIGITS = 18
FORMATS = ("jsonl", "halueval", "truthfulqa", "bbq")


def read_layers(text: str) -> LayerChoice:
    """A layer choice, or a comma-separated list of layers."""
    parts = [part.strip() for part in text.split(",")]
    if all(part.isascii() and part.isdigit() and len(part) <= _DIGITS for part in parts):
        return [int(part) for part in parts]
    check_layer_choice(text)
    return text


def read_pair(text: str, name: str, kind: type[int] | type[float]) -> Any:
    """One number or two with a comma between them."""
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise InputError(f"{name} {text!r}: expected one number, or two with a comma between them")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def read_numbers(text: str, name: str) -> list[float]:
    """Numbers with commas between them."""
    return [read_number(part, name) for part in text.split(",")]


def read_number(text: str, name: str) -> float:
    """A finite number."""
    try:
        return as_number(float(text), name)
    except ValueError:
        raise InputError(f"{name} {text.strip()!r}: expected a number") from None


def read_names(text: str, name: str, known: Sequence[str]) -> list[str]:
    """Comma-separated names of known things, each once."""
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [given for given in names if given not in known]
    if unknown or not names:
        raise InputError(f"{name} {text!r}: expected some of {', '.join(known)}")
    return names


def check_format(form: str) -> None:
    """Refuse an unknown --format."""
    if form not in FORMATS:
        raise InputError(f"--format {form!r}: expected one of {', '.join(FORMATS)}")


def settings(where: dict[str, Any], edit: Edit, path: Path, contrasts: Contrasts, **common: Any) -> dict[str, Any]:
    """What a result was measured with, for its file: the edit by its content, whatever the bytes of its file."""
    digest = edit.digest[:16] if isinstance(edit, SavedEdit) else repr(edit)
    return {
        **where,
        **common,
        "edit": {"file": path.name, "sha256": digest},
        "contrasts": {"n": len(contrasts), "sha256": contrasts.digest},
    }


def read_demonstrations(path: Path, form: str, limit: int | None) -> Demonstrations:
    """Demonstrations from a file of one of the known forms."""
    readers = {
        "jsonl": Demonstrations.from_jsonl,
        "halueval": Demonstrations.from_halueval,
        "truthfulqa": Demonstrations.from_truthfulqa,
        "bbq": Demonstrations.from_bbq,
    }
    return readers[form](path, limit=limit)


def read_contrasts(path: Path, limit: int | None) -> Contrasts:
    """Contrasts from JSON Lines."""
    return Contrasts.from_jsonl(path, limit=limit)


def open_model(
    name: str,
    backend: str,
    device: str | None,
    dtype: str,
    device_map: str | None = None,
    max_memory: str | None = None,
) -> Any:
    """Load a model; "testbed" is the shipped one."""
    path = str(TESTBED) if name == "testbed" else name
    sizes = None if max_memory is None else _sizes(max_memory)
    return load_model(path, backend, device, dtype, device_map=device_map, max_memory=sizes)


def _sizes(given: str) -> dict[int | str, int | str]:
    """How much of each device, as `load_model` takes it."""
    sizes: dict[int | str, int | str] = {}
    for part in given.split(","):
        device, equals, size = (text.strip() for text in part.partition("="))
        place = int(device) if device.isascii() and device.isdigit() and len(device) < 4 else device
        if not (device and equals and size) or place in sizes:
            raise InputError(
                f"--max-memory {given!r}: expected devices, each once, and their sizes, such as 0=20GiB,cpu=60GiB"
            )
        sizes[place] = read_bytes(size)
    return sizes


def edit_and_where(
    edit: Path, layers: str | None, strength: float | None, combine: str | None, positions: str | None
) -> tuple[Edit, dict[str, Any]]:
    """The edit of any method, and where and how to apply it; refuses all that can be refused without a model.

    What is None is what the edit remembers.

    Raises:
        FileError: the file holds no edit.
        InputError: unknown layers, `combine` or positions, or a strength that is no finite number.
    """
    loaded = load_edit(edit)
    if combine is not None and combine not in loaded.combines:
        raise InputError(f"--combine {combine!r}: expected one of {', '.join(loaded.combines)}")
    choice = None if layers is None else read_layers(layers)
    strength = None if strength is None else as_number(strength, "--strength")
    where = loaded.settled(choice, strength, combine, positions)
    try:
        loaded.choose_layers(where["layers"])
    except InputError as error:
        raise InputError(f"--layers {layers}: {error}") from None
    try:
        loaded.choose_positions(where["positions"])
    except InputError as error:
        raise InputError(f"--positions {positions}: {error}") from None
    return loaded, where


def read_controls(paths: Sequence[Path]) -> list[Edit]:
    """Control edits from files, and from folders all that they hold, by name.

    Raises:
        FileError: a file that holds no edit, or a folder without any.
    """
    found: list[Edit] = []
    for path in paths:
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise FileError(f"--control {path}: the folder holds no edits (*.safetensors)")
        found += map(load_edit, files)
    return found


def refuse_without_edit(**options: Any) -> None:
    """Refuse options about an edit where there is none.

    Raises:
        InputError: naming those that were given.
    """
    if given := [f"--{name}" for name, value in options.items() if value is not None]:
        raise InputError(f"{', '.join(given)}: say how to apply an edit: expected --edit")
