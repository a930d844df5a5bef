"""Demonstrations from the files of public benchmarks (docs/method.md 1.1): (row, demonstration) in the file's order."""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from .._support.text_rows import read_jsonl, read_rows, text_field
from ..errors import FileError, InputError
from .items import Demonstration
from .prompts import check_placeholders

QUESTION = "Q: {question}\nA:"
QUESTION_WITH_KNOWLEDGE = "{knowledge}\nQ: {question}\nA:"
QUESTION_IN_CONTEXT = "{context}\nQ: {question}\nA:"
COMPLETION = " {answer}"

Numbered: TypeAlias = tuple[int, Demonstration]
"""A row of a file, counted from 1, and a demonstration made from it."""


def _triple(prompt: str, completion: str, positive: str, negative: str) -> Demonstration:
    return Demonstration(
        prompt, prompt + completion.format(answer=positive), prompt + completion.format(answer=negative)
    )


def halueval(
    path: str | os.PathLike[str],
    *,
    template: str = QUESTION,
    completion: str = COMPLETION,
) -> Iterator[Numbered]:
    """HaluEval QA (`qa_data.json`, JSON Lines): positive is the right answer, negative the hallucinated one.

    Args:
        path: rows of knowledge, question, right_answer, hallucinated_answer.
        template: the prompt, with {question} and, if wanted, {knowledge}.
        completion: what is appended to the prompt, with {answer}.

    Raises:
        FileError: a missing or malformed file; names the row.
        InputError: a template with other fields.
    """
    check_placeholders("template", template, {"question", "knowledge"})
    check_placeholders("completion", completion, {"answer"})

    def convert(number: int, row: dict[str, Any]) -> Demonstration:
        names = ["question", "right_answer", "hallucinated_answer"]
        names += ["knowledge"] if "{knowledge}" in template else []
        fields = {name: text_field(path, number, row, name) for name in names}
        return _triple(template.format(**fields), completion, fields["right_answer"], fields["hallucinated_answer"])

    return ((number, convert(number, row)) for number, row in read_jsonl(path))


def truthfulqa(
    path: str | os.PathLike[str],
    *,
    template: str = QUESTION,
    completion: str = COMPLETION,
    pairs: str = "best",
) -> Iterator[Numbered]:
    """TruthfulQA, as `TruthfulQA.csv` or `mc_task.json`: positive is a true answer, negative a false one.

    Args:
        path: the CSV, or (where the name ends in .json) the multiple-choice file.
        template: the prompt, with {question}.
        completion: what is appended to the prompt, with {answer}.
        pairs: "best" takes the best answer and the first false one of each question; "all" pairs the true answers
            with the false ones, first with first, until either runs out.

    Raises:
        FileError: a missing or malformed file; names the row.
        InputError: a template with other fields, or unknown `pairs`.
    """
    check_placeholders("template", template, {"question"})
    check_placeholders("completion", completion, {"answer"})
    if pairs not in ("best", "all"):
        raise InputError(f"unknown pairs {pairs!r}: expected 'best' or 'all'")

    def convert(number: int, row: dict[str, Any]) -> list[Demonstration]:
        question = truthfulqa_row(path, number, row)
        prompt = template.format(question=question.text)
        true = dict.fromkeys([*question.best, *question.true])
        answers = list(zip(true, question.false, strict=False))
        chosen = answers[:1] if pairs == "best" else answers
        return [_triple(prompt, completion, true, false) for true, false in chosen]

    return ((number, one) for number, row in read_rows(path) for one in convert(number, row))


@dataclass(frozen=True)
class TruthfulQuestion:
    """A question of TruthfulQA, as its file has it.

    Attributes:
        text: the question.
        best: the best true answer (MC1).
        against: the false answers that the best one is set against (MC1).
        true, false: all answers (MC2, MC3); no answer is both.
    """

    text: str
    best: tuple[str, ...]
    against: tuple[str, ...]
    true: tuple[str, ...]
    false: tuple[str, ...]


def truthfulqa_row(path: str | os.PathLike[str], number: int, row: dict[str, Any]) -> TruthfulQuestion:
    """A row of `TruthfulQA.csv`, of `mc_task.json`, or of the hub's multiple-choice files.

    Raises:
        FileError: malformed; names the row.
    """
    if "Question" in row:
        return _truthfulqa_csv(path, number, row)
    (best, against), (true, false) = (_targets(path, number, row, name) for name in ("mc1_targets", "mc2_targets"))
    return TruthfulQuestion(text_field(path, number, row, "question"), best, against, true, false)


def _truthfulqa_csv(path: str | os.PathLike[str], number: int, row: dict[str, Any]) -> TruthfulQuestion:
    best = text_field(path, number, row, "Best Answer").strip()
    true, false = (
        [answer.strip() for answer in text_field(path, number, row, name).split(";") if answer.strip()]
        for name in ("Correct Answers", "Incorrect Answers")
    )
    true = list(dict.fromkeys([best, *true]))
    # Some questions list one answer on both sides; as a demonstration it would contradict itself.
    false = list(dict.fromkeys(answer for answer in false if answer not in true))
    if not false:
        raise FileError(f"{path}, row {number}: every false answer is also a true one")
    return TruthfulQuestion(text_field(path, number, row, "Question"), (best,), tuple(false), tuple(true), tuple(false))


def _targets(
    path: str | os.PathLike[str], number: int, row: dict[str, Any], name: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """True and false answers of a mapping from answers to 1 or 0, or of the hub's two lists."""
    if name not in row:
        raise FileError(f"{path}, row {number}: no field {name!r}; it has {', '.join(map(repr, row)) or 'none'}")
    targets = row[name]
    if isinstance(targets, dict) and set(targets) == {"choices", "labels"}:
        try:
            targets = dict(zip(targets["choices"], targets["labels"], strict=True))
        except (TypeError, ValueError):
            targets = None
    labels = list(targets.values()) if isinstance(targets, dict) else []
    if not isinstance(targets, dict) or not all(type(one) is int and one in (0, 1) for one in labels):
        raise FileError(f"{path}, row {number}: {name} must map answers to 1 (true) and 0 (false)")
    if set(labels) != {0, 1}:
        raise FileError(f"{path}, row {number}: {name} must have a true and a false answer at least")
    if not all(isinstance(answer, str) and answer.strip() for answer in targets):
        raise FileError(f"{path}, row {number}: {name} has an empty answer")
    true, false = (tuple(answer for answer, label in targets.items() if label == side) for side in (1, 0))
    return true, false


def bbq(
    path: str | os.PathLike[str],
    *,
    template: str = QUESTION_IN_CONTEXT,
    completion: str = COMPLETION,
    seed: int = 0,
) -> Iterator[Numbered]:
    """BBQ (JSON Lines): positive is the labelled answer, negative one of the other two, drawn by seed and row.

    Args:
        path: rows of context, question, ans0, ans1, ans2, label.
        template: the prompt, with {context} and {question}.
        completion: what is appended to the prompt, with {answer}.
        seed: for the choice of the negative answer.

    Raises:
        FileError: a missing or malformed file; names the row.
        InputError: a template with other fields.
    """
    check_placeholders("template", template, {"context", "question"})
    check_placeholders("completion", completion, {"answer"})

    def convert(number: int, row: dict[str, Any]) -> Demonstration:
        fields = {name: text_field(path, number, row, name) for name in ("context", "question", "ans0", "ans1", "ans2")}
        label = row.get("label")
        if isinstance(label, bool) or not isinstance(label, int) or label not in (0, 1, 2):
            raise FileError(f"{path}, row {number}: field 'label' must be 0, 1 or 2, got {label!r}")
        wrong = random.Random(f"{seed} {number}").choice([i for i in range(3) if i != label])
        prompt = template.format(context=fields["context"], question=fields["question"])
        return _triple(prompt, completion, fields[f"ans{label}"], fields[f"ans{wrong}"])

    return ((number, convert(number, row)) for number, row in read_jsonl(path))
