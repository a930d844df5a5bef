"""Loading the shipped model with everything that an experiment needs."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from .._support.regular_files import check_name
from ..models.load import load_model
from ..texts.demonstrations import Contrasts, Demonstrations
from ..texts.items import Contrast, Demonstration
from .world import Question, Split, World

PATH = Path(__file__).parent / "weights"
N_DOCUMENTS = 400


@dataclass(frozen=True)
class Testbed:
    """The shipped model and its world, split by question.

    Attributes:
        model: a TransformerLens model.
        world: its truths and myths.
        demonstrations: those of the train split: question, truth, myth.
        contrasts: by split ("train", "dev", "test"): question, truth as target, myth as foil.
        documents: held-out documents of the kind that the model was trained on, for side effects.
    """

    model: Any
    world: World
    demonstrations: Demonstrations
    contrasts: dict[str, Contrasts]
    documents: list[str]


def demonstrations_of(questions: list[Question]) -> Demonstrations:
    """Question, question with its truth, question with its myth."""
    return Demonstrations(
        Demonstration(q.prompt(), f"{q.prompt()} {q.truth}", f"{q.prompt()} {q.myth}") for q in questions
    )


def contrasts_of(questions: list[Question], source: str | None = None) -> Contrasts:
    """Truth against myth; with `source`, asked in a document of that source."""
    return Contrasts(Contrast(q.prompt(source), f" {q.truth}", f" {q.myth}") for q in questions)


def load(backend: str = "auto", path: str | os.PathLike[str] = PATH) -> Testbed:
    """Load the shipped model, or another that `train` wrote, with its world.

    Args:
        backend: as in `load_model`.
        path: the folder that `train` wrote to.

    Returns:
        The model, on the CPU, with demonstrations, contrasts and documents of its world.

    Raises:
        FileError: the folder has no world in it that `train` wrote.
        Otherwise as `load_model`.
    """
    path = check_name(path)
    world = World.load(path / "world.json")
    return Testbed(
        model=load_model(str(path), backend, device="cpu"),
        world=world,
        demonstrations=demonstrations_of(world.split("train")),
        contrasts={split: contrasts_of(world.split(split)) for split in get_args(Split)},
        documents=list(itertools.islice(world.documents("held out"), N_DOCUMENTS)),
    )
