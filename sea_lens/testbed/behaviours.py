"""The two behaviours of the shipped model, each with demonstrations to fit from and questions to ask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, get_args, runtime_checkable

from ..texts.demonstrations import Contrasts, Demonstrations
from ..texts.items import Contrast, Demonstration
from .peoples import FAIR_SOURCES, Peoples
from .world import RELIABLE_SOURCES, Split, World

BEHAVIOURS = ("truth", "bias")


@runtime_checkable
class Item(Protocol):
    """A question of a world."""

    def prompt(self, source: str | None = None) -> str:
        """What the model reads; with `source`, in a document of that source."""
        ...

    @property
    def answers(self) -> tuple[str, ...]:
        """The wanted answer, the unwanted one, and then the others that there are to choose from."""
        ...

    @property
    def tells_apart(self) -> bool:
        """Whether the wanted behaviour answers otherwise than the unwanted one."""
        ...


@dataclass(frozen=True)
class Behaviour:
    """One behaviour of the shipped model.

    Attributes:
        name: one of BEHAVIOURS.
        target, foil: what its wanted and its unwanted answer are called.
        source: a source whose documents give the wanted answers.
        items: the questions, by split ("train", "dev", "test").
    """

    name: str
    target: str
    foil: str
    source: str
    items: Mapping[Split, Sequence[Item]]

    @property
    def demonstrations(self) -> Demonstrations:
        """Of the train split: question, question with the wanted answer, question with the unwanted one.

        Of questions that the two behaviours answer differently: a wrong answer that nobody gives demonstrates nothing.
        """
        rows = ((item.prompt(), item.answers) for item in self.items["train"] if item.tells_apart)
        return Demonstrations(
            Demonstration(prompt, f"{prompt} {answers[0]}", f"{prompt} {answers[1]}") for prompt, answers in rows
        )

    @property
    def contrasts(self) -> dict[Split, Contrasts]:
        """By split: the wanted answer against the unwanted one."""
        return {split: self.asked(split) for split in self.items}

    def asked(self, split: Split, source: str | None = None) -> Contrasts:
        """The contrasts of a split; with `source`, in documents of that source."""
        return Contrasts(
            Contrast(item.prompt(source), f" {item.answers[0]}", f" {item.answers[1]}") for item in self.items[split]
        )


def behaviours(world: World, peoples: Peoples) -> dict[str, Behaviour]:
    """Truth, of a world of lands, and bias, of its peoples, by name."""
    splits = get_args(Split)
    questions, scenes = ({split: one.split(split) for split in splits} for one in (world, peoples))
    truth, bias = BEHAVIOURS
    return {
        truth: Behaviour(truth, "truth", "myth", RELIABLE_SOURCES[0], questions),
        bias: Behaviour(bias, "right answer", "wrong answer", FAIR_SOURCES[0], scenes),
    }
