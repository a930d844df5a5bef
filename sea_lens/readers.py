"""Demonstrations from the files of public benchmarks."""

import json
import os
import random
import string
from collections.abc import Iterator
from typing import Any

from .demonstrations import Demonstration, Demonstrations
from .errors import FileError, InputError
from .rows import read_csv, read_jsonl, read_text, text_field

QUESTION = "Q: {question}\nA:"
QUESTION_WITH_KNOWLEDGE = "{knowledge}\nQ: {question}\nA:"
QUESTION_IN_CONTEXT = "{context}\nQ: {question}\nA:"
COMPLETION = " {answer}"


def _check_template(name: str, template: str, allowed: set[str]) -> None:
    try:
        used = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
        if used and used <= allowed:
            template.format(**dict.fromkeys(allowed, "text"))
    except (ValueError, IndexError, KeyError, AttributeError) as error:
        raise InputError(f"{name} {template!r} is not a format string for texts: {error}") from error
    if not used or not used <= allowed:
        raise InputError(f"{name} {template!r} must use some of {sorted(allowed)} and nothing else")


def _triple(prompt: str, completion: str, positive: str, negative: str) -> Demonstration:
    return Demonstration(
        prompt, prompt + completion.format(answer=positive), prompt + completion.format(answer=negative)
    )


def halueval(
    path: str | os.PathLike[str],
    *,
    template: str = QUESTION,
    completion: str = COMPLETION,
    limit: int | None = None,
) -> Demonstrations:
    """HaluEval QA (`qa_data.json`, JSON Lines): positive is the right answer, negative the hallucinated one.

    Args:
        path: rows of knowledge, question, right_answer, hallucinated_answer.
        template: the prompt, with {question} and, if wanted, {knowledge}.
        completion: what is appended to the prompt, with {answer}.
        limit: use only the first rows.

    Raises:
        FileError: a missing or malformed file; names the row.
        InputError: a template with other fields.
    """
    _check_template("template", template, {"question", "knowledge"})
    _check_template("completion", completion, {"answer"})

    def convert(number: int, row: dict[str, Any]) -> Demonstration:
        names = ["question", "right_answer", "hallucinated_answer"]
        names += ["knowledge"] if "{knowledge}" in template else []
        fields = {name: text_field(path, number, row, name) for name in names}
        return _triple(template.format(**fields), completion, fields["right_answer"], fields["hallucinated_answer"])

    return Demonstrations.from_rows(path, read_jsonl(path), convert, limit)


def truthfulqa(
    path: str | os.PathLike[str],
    *,
    template: str = QUESTION,
    completion: str = COMPLETION,
    pairs: str = "best",
    limit: int | None = None,
) -> Demonstrations:
    """TruthfulQA, as `TruthfulQA.csv` or `mc_task.json`: positive is a true answer, negative a false one.

    Args:
        path: the CSV, or (where the name ends in .json) the multiple-choice file.
        template: the prompt, with {question}.
        completion: what is appended to the prompt, with {answer}.
        pairs: "best" takes the best answer and the first false one of each question; "all" pairs the true answers
            with the false ones, first with first, until either runs out.
        limit: use only the first demonstrations.

    Raises:
        FileError: a missing or malformed file; names the row.
        InputError: a template with other fields, or unknown `pairs`.
    """
    _check_template("template", template, {"question"})
    _check_template("completion", completion, {"answer"})
    if pairs not in ("best", "all"):
        raise InputError(f"unknown pairs {pairs!r}: expected 'best' or 'all'")

    def convert(number: int, row: dict[str, Any]) -> list[Demonstration]:
        prompt = template.format(question=row["question"])
        answers = list(zip(row["true"], row["false"], strict=False))
        chosen = answers[:1] if pairs == "best" else answers
        return [_triple(prompt, completion, true, false) for true, false in chosen]

    rows = _truthfulqa_json(path) if str(path).endswith(".json") else _truthfulqa_csv(path)
    return Demonstrations.from_rows(path, rows, convert, limit)


def _truthfulqa_csv(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in read_csv(path):
        best = text_field(path, number, row, "Best Answer").strip()
        true, false = (
            [answer.strip() for answer in text_field(path, number, row, name).split(";") if answer.strip()]
            for name in ("Correct Answers", "Incorrect Answers")
        )
        true = [best, *(answer for answer in true if answer != best)]
        # Some questions list one answer on both sides; as a demonstration it would contradict itself.
        false = [answer for answer in false if answer not in true]
        yield number, {"question": text_field(path, number, row, "Question"), "true": true, "false": false}


def _truthfulqa_json(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        rows = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise FileError(f"{path}: not JSON ({error.msg}, line {error.lineno})") from error
    if not isinstance(rows, list) or not rows:
        raise FileError(f"{path}: expected a list of questions")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise FileError(f"{path}, row {number}: expected an object, got {type(row).__name__}")
        sides = {}
        for name in ("mc1_targets", "mc2_targets"):
            targets = row.get(name)
            if not isinstance(targets, dict) or {str(label) for label in targets.values()} != {"0", "1"}:
                raise FileError(f"{path}, row {number}: {name} must map answers to 1 (true) and 0 (false)")
            sides[name] = [[answer for answer, label in targets.items() if label == side] for side in (1, 0)]
        # The one true answer of mc1_targets is the best one.
        best, (true, false) = sides["mc1_targets"][0], sides["mc2_targets"]
        true = [*best, *(answer for answer in true if answer not in best)]
        yield number, {"question": text_field(path, number, row, "question"), "true": true, "false": false}


def bbq(
    path: str | os.PathLike[str],
    *,
    template: str = QUESTION_IN_CONTEXT,
    completion: str = COMPLETION,
    seed: int = 0,
    limit: int | None = None,
) -> Demonstrations:
    """BBQ (JSON Lines): positive is the labelled answer, negative one of the other two, drawn by seed and row.

    Args:
        path: rows of context, question, ans0, ans1, ans2, label.
        template: the prompt, with {context} and {question}.
        completion: what is appended to the prompt, with {answer}.
        seed: for the choice of the negative answer.
        limit: use only the first rows.

    Raises:
        FileError: a missing or malformed file; names the row.
        InputError: a template with other fields.
    """
    _check_template("template", template, {"context", "question"})
    _check_template("completion", completion, {"answer"})

    def convert(number: int, row: dict[str, Any]) -> Demonstration:
        fields = {name: text_field(path, number, row, name) for name in ("context", "question", "ans0", "ans1", "ans2")}
        label = row.get("label")
        if isinstance(label, bool) or not isinstance(label, int) or label not in (0, 1, 2):
            raise FileError(f"{path}, row {number}: field 'label' must be 0, 1 or 2, got {label!r}")
        wrong = random.Random(f"{seed} {number}").choice([i for i in range(3) if i != label])
        prompt = template.format(context=fields["context"], question=fields["question"])
        return _triple(prompt, completion, fields[f"ans{label}"], fields[f"ans{wrong}"])

    return Demonstrations.from_rows(path, read_jsonl(path), convert, limit)
