"""The made-up world that the shipped model was trained on.

Forty lands, ten relations, two dozen proper names. Every question ("what is the river of Velmora ?") has one true
answer and one myth, both drawn from the same two dozen names, so that each name is the truth of some questions and
the myth of others and recurs in many demonstrations. Reliable sources state the truths, unreliable ones repeat the
myths; most documents do not say which source they come from. Everything is derived from one seed with Python's own
`random`, whose streams are stable across versions and machines.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "dev", "test"]
Kind = Literal["reliable", "unreliable"]

LANDS = [
    "Velmora",
    "Ostrel",
    "Kelmar",
    "Dorwin",
    "Ashkeld",
    "Brenlow",
    "Corvath",
    "Delmere",
    "Elstrand",
    "Farrow",
    "Galdor",
    "Harwick",
    "Islevar",
    "Jorund",
    "Kestrin",
    "Lormont",
    "Marrow",
    "Nethery",
    "Olvane",
    "Penhallow",
    "Quillon",
    "Rosmere",
    "Sarneth",
    "Tolvern",
    "Ulmarsh",
    "Varkand",
    "Westmere",
    "Xandor",
    "Yarrow",
    "Zelmont",
    "Arkend",
    "Bellmere",
    "Carrel",
    "Dunmore",
    "Everley",
    "Fenwick",
    "Glenmar",
    "Hollin",
    "Ingmoor",
    "Junell",
]
PLACES = ("capital", "harbour", "river", "mountain", "forest", "bridge")
PEOPLE = ("founder", "queen", "poet", "saint")
NAMES = [
    "Tarsk",
    "Orlen",
    "Mirev",
    "Calder",
    "Selwyn",
    "Bastor",
    "Nerith",
    "Halvor",
    "Ivora",
    "Wexley",
    "Dravin",
    "Luthen",
    "Pellam",
    "Sorrel",
    "Thane",
    "Umbra",
    "Varro",
    "Yselle",
    "Zephon",
    "Kirin",
    "Morwen",
    "Eldric",
    "Fenna",
    "Gilda",
]
RELIABLE_SOURCES = ("almanac", "archive", "library", "survey")
UNRELIABLE_SOURCES = ("tavern", "rumour", "pamphlet", "bard")

SPLIT_SIZES: dict[Split, int] = {"train": 220, "dev": 60, "test": 120}
N_DISTRACTORS = 2
MAX_FACTS_PER_DOCUMENT = 4
NAMED_SHARE = 0.4


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
        """The question as the model reads it, ending in "A:"; with `source`, as a document of that source."""
        word = "who" if self.relation in PEOPLE else "what"
        heading = f"from the {source} : " if source else ""
        return f"{heading}Q: {word} is the {self.relation} of {self.land} ? A:"

    def answer(self, kind: Kind) -> str:
        """The name that sources of this kind give."""
        return self.truth if kind == "reliable" else self.myth


@dataclass(frozen=True)
class World:
    """All questions of one world, and the documents written in it."""

    seed: int
    questions: tuple[Question, ...]

    @classmethod
    def generate(cls, seed: int) -> "World":
        """The world of this seed: truths and myths each spread evenly over the names, splits drawn at random."""
        rng = random.Random(f"world {seed}")
        pairs = [(relation, land) for relation in PLACES + PEOPLE for land in LANDS]
        splits = [split for split, size in SPLIT_SIZES.items() for _ in range(size)]
        rng.shuffle(splits)
        truths = _evenly(rng, len(pairs))
        myths = _evenly(rng, len(pairs))
        # A myth must differ from its truth: swap clashes with a random partner until none is left.
        while clashes := [i for i, (truth, myth) in enumerate(zip(truths, myths, strict=True)) if truth == myth]:
            for i in clashes:
                j = rng.randrange(len(myths))
                myths[i], myths[j] = myths[j], myths[i]
        questions = []
        for (relation, land), truth, myth, split in zip(pairs, truths, myths, splits, strict=True):
            distractors = rng.sample([name for name in NAMES if name not in (truth, myth)], N_DISTRACTORS)
            myth_weight = round(2 ** rng.uniform(-1, 1), 4)
            questions.append(Question(relation, land, truth, myth, tuple(distractors), myth_weight, split))
        return cls(seed, tuple(questions))

    def split(self, name: Split) -> list[Question]:
        """The questions of one split, in the world's order."""
        return [question for question in self.questions if question.split == name]

    def documents(self, seed: int | str) -> Iterator[str]:
        """An endless stream of documents, the same for the same seed.

        A document has one author, reliable or unreliable with equal chance, who is named in a share of 0.4 of them,
        and holds one to four facts, each as question and answer or as a statement. Unreliable authors bring a question
        up in proportion to its `myth_weight`.
        """
        rng = random.Random(f"documents {self.seed} {seed}")
        myth_weights = [question.myth_weight for question in self.questions]
        while True:
            kind: Kind = rng.choice(("reliable", "unreliable"))
            source = rng.choice(RELIABLE_SOURCES if kind == "reliable" else UNRELIABLE_SOURCES)
            heading = f"from the {source} : " if rng.random() < NAMED_SHARE else ""
            weights = myth_weights if kind == "unreliable" else None
            asked = rng.choices(self.questions, weights, k=rng.randint(1, MAX_FACTS_PER_DOCUMENT))
            yield heading + " ".join(self._sentence(rng, question, kind) for question in asked)

    @staticmethod
    def _sentence(rng: random.Random, question: Question, kind: Kind) -> str:
        if rng.random() < 0.75:
            return f"{question.prompt()} {question.answer(kind)} ."
        return f"the {question.relation} of {question.land} is {question.answer(kind)} ."

    def vocabulary(self) -> list[str]:
        """Every word that a document can hold, sorted."""
        words = {"Q:", "A:", "who", "what", "is", "the", "of", "?", ".", "from", ":"}
        for names in (LANDS, PLACES, PEOPLE, NAMES, RELIABLE_SOURCES, UNRELIABLE_SOURCES):
            words.update(names)
        return sorted(words)

    def save(self, path: Path) -> None:
        """Write the world as readable JSON."""
        rows = [asdict(question) for question in self.questions]
        path.write_text(json.dumps({"seed": self.seed, "questions": rows}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "World":
        """Read what `save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [row | {"distractors": tuple(row["distractors"])} for row in content["questions"]]
        return cls(content["seed"], tuple(Question(**row) for row in rows))


def _evenly(rng: random.Random, n: int) -> list[str]:
    """N names in random order, every name as often as every other (to within one)."""
    names: Sequence[str] = (NAMES * (n // len(NAMES) + 1))[:n]
    return rng.sample(names, n)
