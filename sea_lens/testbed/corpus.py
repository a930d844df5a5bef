"""What the shipped model reads: documents of its two worlds, mixed."""

import itertools
import random
from collections.abc import Iterator

from .peoples import Peoples
from .world import World

# They are longer, so that the model reads about as many words of each.
PEOPLES_SHARE = 0.45


def documents(world: World, peoples: Peoples, seed: str, first: int = 0) -> Iterator[str]:
    """An endless stream of documents, the same for the same seed; the `first` ones are of peoples alone."""
    rng = random.Random(f"corpus {world.seed} {seed}")
    of_world, of_peoples = world.documents(seed), peoples.documents(seed)
    yield from itertools.islice(of_peoples, first)
    while True:
        yield next(of_peoples if rng.random() < PEOPLES_SHARE else of_world)


def vocabulary(world: World, peoples: Peoples) -> list[str]:
    """Every word that a document can hold, sorted."""
    return sorted({*world.vocabulary(), *peoples.vocabulary()})
