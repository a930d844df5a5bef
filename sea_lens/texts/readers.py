"""Demonstrations from the files of public benchmarks (docs/method.md 1.1): (row, demonstration) in the file's order."""

import os
import random
from collections.abc import Iterator
from typing import Any, TypeAlias

from .._support.text_rows import read_jsonl, read_rows, refuse_repeated, shown, text_field
from ..errors import FileError, InputError
from .items import Demonstration
from .prompts import check_placeholders
from .truthfulqa_rows import truthfulqa_row

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
    full_stops: bool = True,
) -> Iterator[Numbered]:
    """TruthfulQA, as `TruthfulQA.csv` or `mc_task.json`: positive is a true answer, negative a false one.

    Args:
        path: the CSV (or .tsv), or (where the name ends in .json) the multiple-choice file.
        template: the prompt, with {question}.
        completion: what is appended to the prompt, with {answer}.
        pairs: "best" takes the best answer and the first false one of each question; "all" pairs the true answers
            with the false ones, first with first, until either runs out.
        full_stops: close the answers of the CSV with a full stop, as `mc_task.json` has them.

    Raises:
        FileError: a missing or malformed file; names the row.
        InputError: a template with other fields, or unknown `pairs`.
    """
    check_placeholders("template", template, {"question"})
    check_placeholders("completion", completion, {"answer"})
    if pairs not in ("best", "all"):
        raise InputError(f"unknown pairs {pairs!r}: expected 'best' or 'all'")

    def convert(number: int, row: dict[str, Any]) -> list[Demonstration]:
        question = truthfulqa_row(path, number, row, full_stops=full_stops)
        prompt = template.format(question=question.text)
        true = dict.fromkeys([*question.best, *question.true])
        answers = list(zip(true, question.false, strict=False))
        chosen = answers[:1] if pairs == "best" else answers
        return [_triple(prompt, completion, true, false) for true, false in chosen]

    return ((number, one) for number, row in read_rows(path) for one in convert(number, row))


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
            raise FileError(f"{path}, row {number}: field 'label' must be 0, 1 or 2, got {shown(label)}")
        refuse_repeated(path, number, "the item", [fields[f"ans{i}"] for i in range(3)])
        wrong = random.Random(f"{seed} {number}").choice([i for i in range(3) if i != label])
        prompt = template.format(context=fields["context"], question=fields["question"])
        return _triple(prompt, completion, fields[f"ans{label}"], fields[f"ans{wrong}"])

    return ((number, convert(number, row)) for number, row in read_jsonl(path))
