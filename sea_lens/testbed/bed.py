"""Loading the shipped model with everything that an experiment needs."""

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._support.regular_files import check_name
from .._support.storage import as_file_errors
from .._support.text_rows import read_json
from ..models.load import load_model
from ..texts.demonstrations import Contrasts, Demonstrations
from .behaviours import Behaviour, behaviours
from .corpus import documents
from .peoples import Peoples
from .world import Split, World

PATH = Path(__file__).parent / "weights"
# What `choosing` has written beside the weights.
CHOSEN = "chosen.json"
# Held-out documents of both kinds.
N_DOCUMENTS = 400


@dataclass(frozen=True)
class Testbed:
    """The shipped model, its two behaviours, and the worlds that they are about.

    Attributes:
        model: a TransformerLens model.
        world: its truths and myths.
        peoples: whom it has prejudices about.
        behaviours: "truth" and "bias": demonstrations to fit from and contrasts to measure on.
        documents: held-out documents of the kinds that the model was trained on, for side effects.
        chosen: for each behaviour, what `choosing` chose on dev; empty where it has not been run.
    """

    model: Any
    world: World
    peoples: Peoples
    behaviours: Mapping[str, Behaviour]
    documents: list[str]
    chosen: Mapping[str, Any]

    @property
    def demonstrations(self) -> Demonstrations:
        """Those of truth."""
        return self.behaviours["truth"].demonstrations

    @property
    def contrasts(self) -> dict[Split, Contrasts]:
        """Those of truth, by split."""
        return self.behaviours["truth"].contrasts


def load(backend: str = "auto", path: str | os.PathLike[str] = PATH) -> Testbed:
    """Load the shipped model, or another that `train` wrote, with its worlds.

    Args:
        backend: as in `load_model`.
        path: the folder that `train` wrote to.

    Returns:
        The model, on the CPU, with the demonstrations, contrasts and documents of its worlds.

    Raises:
        FileError: the folder has no world in it that `train` wrote.
        Otherwise as `load_model`.
    """
    path = check_name(path)
    world = World.load(path / "world.json")
    peoples = Peoples.generate(world.seed)
    return Testbed(
        model=load_model(str(path), backend, device="cpu"),
        world=world,
        peoples=peoples,
        behaviours=behaviours(world, peoples),
        documents=list(itertools.islice(documents(world, peoples, "held out"), N_DOCUMENTS)),
        chosen=_chosen(path / CHOSEN),
    )


def _chosen(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    content = read_json(path)
    with as_file_errors(path):
        return content["behaviours"]
