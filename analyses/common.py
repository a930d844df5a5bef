"""What the analyses share: their inputs on the command line."""

import argparse
from typing import Any

import sea_lens as sl


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Arguments that name a model, an edit and contrasts; without them, the shipped model and an edit of it."""
    parser.add_argument("--model", help="Hugging Face name or local folder")
    parser.add_argument("--edit", help="fitted edit (safetensors)")
    parser.add_argument("--contrasts", help="JSON Lines with prompt, target, foil")
    parser.add_argument("--demonstrations", help="JSON Lines that the edit was fitted from: adds a permutation control")
    parser.add_argument("--control-draws", type=int, default=19, help="permuted edits to compare with")
    parser.add_argument("--layers", default="all", help="all, first-L, last-L or signature-L")
    parser.add_argument("--strength", type=float, default=1.0)


def inputs(arguments: argparse.Namespace) -> tuple[Any, sl.SpectralEdit, sl.Contrasts]:
    """The model, the edit and the contrasts."""
    given = (arguments.model, arguments.edit, arguments.contrasts)
    if not any(given):
        bed = sl.testbed.load()
        edit = sl.fit(sl.capture(bed.model, bed.demonstrations, batch_size=64), rank=8)
        return bed.model, edit, bed.contrasts["dev"]
    if not all(given):
        raise SystemExit("--model, --edit and --contrasts go together")
    return (
        sl.load_model(arguments.model),
        sl.SpectralEdit.load(arguments.edit),
        sl.Contrasts.from_jsonl(arguments.contrasts),
    )


def demonstrations(arguments: argparse.Namespace) -> sl.Demonstrations | None:
    """What the edit was fitted from, None where that is not said."""
    if arguments.demonstrations is not None:
        return sl.Demonstrations.from_jsonl(arguments.demonstrations)
    return sl.testbed.load().demonstrations if arguments.model is None else None


def controls(arguments: argparse.Namespace, model: Any, edit: sl.SpectralEdit) -> list[sl.SpectralEdit]:
    """The edit fitted anew to shuffled demonstrations; none where they are not known."""
    demos = demonstrations(arguments)
    return [] if demos is None else sl.permuted(model, edit, demos, arguments.control_draws, batch_size=64)
