"""The made-up world that the shipped model was trained on.

It has 72 lands and ten relations. Every question ("who is the poet of Velmora ?") has one true answer and one myth, two
of the same nine names. The design is balanced: in every relation each of the 72 ordered pairs of names is truth and
myth of one land, and each split has every pair equally often. So nothing can be told from a name, from a relation, or
from which truths go with which myths, and an edit that merely favours some names gains nothing. Reliable sources state
the truths, unreliable ones repeat the myths; most documents do not name their source, so that what kind it is can only
be told from the answers it has given. A model that wants to tell must know truth and myth at once and apart, before it
knows which it is to say. Everything is derived from one seed with Python's own `random`, whose streams are the same in
every version and on every machine.
"""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from .._support.storage import as_file_errors
from .._support.text_rows import read_json

Split = Literal["train", "dev", "test"]
Kind = Literal["reliable", "unreliable"]

BEGINNINGS = "Vel Kel Dor Ash Bren Cor Del Far Mar".split()
ENDINGS = "mora stra dwin keld low vath mere strand".split()
THINGS = ("capital", "harbour", "river", "mountain", "forest", "bridge")
PEOPLE = ("founder", "queen", "poet", "saint")
NAMES = "Tarsk Orlen Mirev Calder Selwyn Bastor Nerith Halvor Ivora".split()
RELIABLE_SOURCES = ("scholar", "surveyor", "archivist", "herald")
UNRELIABLE_SOURCES = ("sailor", "jester", "gossip", "bard")

# How many of a pair's ten questions, one in each relation, go into each split.
QUESTIONS_PER_PAIR: dict[Split, int] = {"train": 6, "dev": 2, "test": 2}
N_DISTRACTORS = 2
FACTS_PER_DOCUMENT = (2, 5)
NAMED_SHARE = 0.45
STATEMENT_SHARE = 0.1


def heading_of(speaker: str, listener: str) -> str:
    """The heading of a document whose facts are the speaker's."""
    return f"the {speaker} told the {listener} : "


@dataclass(frozen=True)
class Question:
    """One question of the world with its two answers.

    Attributes:
        relation: what is asked for, such as "capital".
        land: the land that it is asked of.
        truth: the answer that reliable sources give.
        myth: the answer that unreliable sources give.
        distractors: two further names, neither truth nor myth, for multiple choice.
        myth_weight: how often unreliable sources bring the question up, relative to reliable ones.
        split: "train", "dev" or "test".
    """

    relation: str
    land: str
    truth: str
    myth: str
    distractors: tuple[str, ...]
    myth_weight: float
    split: Split

    def prompt(self, source: str | None = None) -> str:
        """The question as the model reads it, ending in "A:"; with `source`, in a document of that source."""
        word = "who" if self.relation in PEOPLE else "what"
        heading = ""
        if source is not None:
            listener = UNRELIABLE_SOURCES[0] if source in RELIABLE_SOURCES else RELIABLE_SOURCES[0]
            heading = heading_of(source, listener)
        return f"{heading}Q: {word} is the {self.relation} of {self.land} ? A:"

    @property
    def tells_apart(self) -> bool:
        """Always: reliable and unreliable sources answer every question differently."""
        return True

    @property
    def answers(self) -> tuple[str, ...]:
        """The truth, the myth, and then the distractors."""
        return (self.truth, self.myth, *self.distractors)

    def answer(self, kind: Kind) -> str:
        """The name that sources of this kind give."""
        return self.truth if kind == "reliable" else self.myth


@dataclass(frozen=True)
class World:
    """All questions of one world, and the documents written in it.

    Attributes:
        seed: everything in the world is derived from it.
        questions: of all splits, relation by relation.
    """

    seed: int
    questions: tuple[Question, ...]

    @classmethod
    def generate(cls, seed: int) -> "World":
        """The world of this seed."""
        rng = random.Random(f"world {seed}")
        lands = [beginning + ending for beginning in BEGINNINGS for ending in ENDINGS]
        pairs = list(itertools.permutations(NAMES, 2))
        splits: list[Split] = [split for split, size in QUESTIONS_PER_PAIR.items() for _ in range(size)]
        # splits_of[pair][i] is the split of the pair's question in relation i.
        splits_of = {pair: rng.sample(splits, len(splits)) for pair in pairs}
        questions = []
        for i, relation in enumerate(THINGS + PEOPLE):
            for land, (truth, myth) in zip(lands, rng.sample(pairs, len(pairs)), strict=True):
                distractors = rng.sample([name for name in NAMES if name not in (truth, myth)], N_DISTRACTORS)
                weight = round(2 ** rng.uniform(-1, 1), 4)
                split = splits_of[truth, myth][i]
                questions.append(Question(relation, land, truth, myth, tuple(distractors), weight, split))
        return cls(seed, tuple(questions))

    def split(self, name: Split) -> list[Question]:
        """The questions of one split, in the world's order."""
        return [question for question in self.questions if question.split == name]

    def documents(self, seed: str) -> Iterator[str]:
        """An endless stream of documents, the same for the same seed.

        A document holds two to five facts, all of one speaker, reliable or unreliable with equal chance. A share of
        0.45 of the documents have a heading that names who speaks ("the scholar told the jester :"); the others name
        nobody. Unreliable speakers bring a myth up in proportion to its `myth_weight`.
        """
        rng = random.Random(f"documents {self.seed} {seed}")
        myth_weights = [question.myth_weight for question in self.questions]
        while True:
            speaker: Kind = rng.choice(("reliable", "unreliable"))
            heading = ""
            if rng.random() < NAMED_SHARE:
                names = (RELIABLE_SOURCES, UNRELIABLE_SOURCES)
                says, hears = names if speaker == "reliable" else names[::-1]
                heading = heading_of(rng.choice(says), rng.choice(hears))
            sentences = []
            for _ in range(rng.randint(*FACTS_PER_DOCUMENT)):
                weights = myth_weights if speaker == "unreliable" else None
                sentences.append(self._sentence(rng, rng.choices(self.questions, weights)[0], speaker))
            yield heading + " ".join(sentences)

    @staticmethod
    def _sentence(rng: random.Random, question: Question, kind: Kind) -> str:
        if rng.random() < STATEMENT_SHARE:
            return f"the {question.relation} of {question.land} is {question.answer(kind)} ."
        return f"{question.prompt()} {question.answer(kind)} ."

    def vocabulary(self) -> list[str]:
        """Every word that a document can hold, sorted."""
        words = {"Q:", "A:", "who", "what", "is", "the", "of", "?", ".", "told", ":"}
        words.update(THINGS, PEOPLE, NAMES, RELIABLE_SOURCES, UNRELIABLE_SOURCES)
        words.update(question.land for question in self.questions)
        return sorted(words)

    def save(self, path: Path) -> None:
        """Write the world as readable JSON."""
        rows = [asdict(question) for question in self.questions]
        path.write_text(json.dumps({"seed": self.seed, "questions": rows}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "World":
        """Read what `save` wrote.

        Raises:
            FileError: a missing or malformed file.
        """
        content = read_json(path)
        with as_file_errors(path):
            rows = [row | {"distractors": tuple(row["distractors"])} for row in content["questions"]]
            return cls(content["seed"], tuple(Question(**row) for row in rows))
