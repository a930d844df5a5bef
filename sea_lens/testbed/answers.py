"""Greedy answers to the test questions, before and after an edit: all of them counted, some shown."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..edits.base import Edit
from ..edits.generation import generate
from .behaviours import Behaviour, Item

# Every so-manieth test question is shown with its answers, whatever they are.
SHOWN_EVERY = 18


def greedy_answers(
    model: Any, behaviour: Behaviour, edit: Edit, where: Mapping[str, Any], batch_size: int
) -> list[dict[str, str]]:
    """The answer to every test question, before and after the edit."""
    items = behaviour.items["test"]
    prompts = [item.prompt() for item in items]
    before = generate(model, prompts, max_new_tokens=1, batch_size=batch_size)
    after = generate(model, prompts, edit, **where, max_new_tokens=1, batch_size=batch_size)
    return [_answer(*triple) for triple in zip(items, before, after, strict=True)]


def answer_counts(answers: Sequence[dict[str, str]]) -> dict[str, int]:
    """How many answers are right before and after, how many the edit mends and breaks, and how many it changes."""
    before, after = ([row[side] == row["target"] for row in answers] for side in ("before", "after"))
    pairs = list(zip(before, after, strict=True))
    return {
        "questions": len(answers),
        "right_before": sum(before),
        "right_after": sum(after),
        "mended": pairs.count((False, True)),
        "broken": pairs.count((True, False)),
        "changed": sum(row["before"] != row["after"] for row in answers),
    }


def shown_answers(answers: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Every eighteenth question from the first on: which are shown depends on no answer."""
    return list(answers[::SHOWN_EVERY])


def _answer(item: Item, before: str, after: str) -> dict[str, str]:
    target, foil = item.answers[:2]
    return {
        "question": item.prompt(),
        "target": target,
        "foil": foil,
        "before": before.strip(),
        "after": after.strip(),
    }
