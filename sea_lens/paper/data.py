"""What a folder of data holds for each behaviour: demonstrations to fit from, and benchmarks to measure on.

    halueval/qa_data.json(l)             truth: what is fitted from
    truthfulqa/mc_task.json, or its CSV  truth: what is measured on
    bbq/*.jsonl                          bias: what is measured on
    bbq/disambig_validation.jsonl        bias: what is fitted from; without it a quarter of the templates of the others
    crows_pairs/crows_pairs_anonymized.csv, capability/*.jsonl, text/*.json
    demonstrations/truth.jsonl, demonstrations/bias.jsonl    in place of those above: full texts

A file that is not there is no error until an analysis needs it.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .._support.text_rows import read_jsonl, text_field
from ..errors import FileError
from ..evaluation.benchmark import Item
from ..evaluation.run import Task
from ..texts.chat_prompts import ChatPrompt
from ..texts.demonstrations import Demonstrations
from ..texts.items import Demonstration
from ..texts.prompts import PromptTemplate

HALUEVAL = ("halueval/qa_data.jsonl", "halueval/qa_data.json")
TRUTHFULQA = ("truthfulqa/mc_task.json", "truthfulqa/TruthfulQA.csv")
# The released code's own split; where it is there, demonstrations are drawn from it alone.
BBQ_DEMONSTRATIONS = "bbq/disambig_validation.jsonl"
CROWS_PAIRS = ("crows_pairs/crows_pairs_anonymized.csv",)
# Of what is drawn, as in the released code.
SEED = 44


@dataclass(frozen=True)
class Pair:
    """What a demonstration is made of, before it stands in a prompt.

    Attributes:
        fields: of the prompt.
        positive, negative: the answers.
    """

    fields: Mapping[str, str]
    positive: str
    negative: str


def path_of(folder: Path, names: Iterable[str]) -> Path:
    """The first of these files that the folder has.

    Raises:
        FileError: it has none of them.
    """
    names = list(names)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileError(f"{folder} has no {' or '.join(names)}")


def paths_in(folder: Path, part: str, endings: tuple[str, ...]) -> list[Path]:
    """All files with these endings in a part of the folder, by name.

    Raises:
        FileError: there are none.
    """
    found = sorted(path for path in (folder / part).glob("*") if path.suffix in endings)
    if not found:
        raise FileError(f"{folder} has no {part}/*{' or *'.join(endings)}")
    return found


def drawn(n: int, of: int, seed: int = SEED) -> list[int]:
    """N different places of so many, in order; all where they are no more."""
    return list(range(of)) if n >= of else sorted(random.Random(seed).sample(range(of), n))


def limited(task: Task, limit: int | None) -> Task:
    """So many items of a task at most, drawn by chance: rows of a file that follow each other are often of one kind."""
    if limit is None:
        return task
    return replace(task, items=tuple(task.items[place] for place in drawn(limit, len(task.items))))


def truth_task(folder: Path, template: PromptTemplate) -> Task:
    """TruthfulQA of a folder."""
    return Task.read("truthfulqa", path_of(folder, TRUTHFULQA), prompt=template)


def bias_task(folder: Path, template: PromptTemplate) -> Task:
    """BBQ's items of all files of a folder, but for those that demonstrations are drawn from."""
    paths = paths_in(folder, "bbq", (".jsonl",))
    tested = [path for path in paths if path != folder / BBQ_DEMONSTRATIONS] or paths
    kept = _for_demonstrations(tested) if tested == paths else frozenset()
    tasks = [Task.read("bbq", path, prompt=template) for path in tested]
    items = [
        item for path, task in zip(tested, tasks, strict=True) for item in task.items if (path, item.row) not in kept
    ]
    source = ", ".join(task.source for task in tasks)
    # Each is known by its row, which several files have.
    return replace(tasks[0], source=source, items=tuple(replace(item, row=i) for i, item in enumerate(items, start=1)))


def truth_pairs(folder: Path) -> list[Pair]:
    """HaluEval's questions with their right and their hallucinated answer."""
    path = path_of(folder, HALUEVAL)
    rows = (
        (text_field(path, number, row, name) for name in ("question", "right_answer", "hallucinated_answer"))
        for number, row in read_jsonl(path)
    )
    return [Pair({"question": question}, right, wrong) for question, right, wrong in rows]


def bias_pairs(folder: Path) -> list[Pair]:
    """BBQ's clear questions with the right answer and one of the other two, drawn by chance."""
    paths = paths_in(folder, "bbq", (".jsonl",))
    kept = None
    if (split := folder / BBQ_DEMONSTRATIONS) in paths and len(paths) > 1:
        paths = [split]
    else:
        kept = _for_demonstrations(paths)
    rng = random.Random(SEED)
    found = []
    for path in paths:
        for item in Task.read("bbq", path).items:
            if item.facts["condition"] == "disambiguated" and (kept is None or (path, item.row) in kept):
                label = item.facts["label"]
                wrong = rng.choice([i for i in range(len(item.answers)) if i != label])
                found.append(Pair(_asked(item), item.answers[label], item.answers[wrong]))
    if not found:
        raise FileError(f"{', '.join(map(str, paths))}: no question in a disambiguated context to fit from")
    return found


def _for_demonstrations(paths: Iterable[Path]) -> frozenset[tuple[Path, int]]:
    """Rows of BBQ's files to fit from, where there is no file of its own for them: a quarter of the templates.

    A template is asked of many groups and in both directions; what is measured asks others.

    Raises:
        FileError: there is a single template.
    """
    template_of_row = {
        (path, number): (str(row.get("category")), str(row.get("question_index")))
        for path in paths
        for number, row in read_jsonl(path)
        if isinstance(row, dict)
    }
    templates = sorted(set(template_of_row.values()))
    if len(templates) < 2:
        raise FileError(
            f"{', '.join(map(str, paths))}: one template of questions alone, to fit from or to measure on: expected "
            f"others, or {BBQ_DEMONSTRATIONS}"
        )
    chosen = {templates[place] for place in drawn(max(1, len(templates) // 4), len(templates))}
    return frozenset(place for place, template in template_of_row.items() if template in chosen)


def without_asked(pairs: Iterable[Pair], task: Task) -> list[Pair]:
    """Those that ask none of the questions of a task.

    Raises:
        FileError: none are left.
    """
    asked = {tuple(sorted(_asked(item).items())) for item in task.items}
    left = [pair for pair in pairs if tuple(sorted(pair.fields.items())) not in asked]
    if not left:
        raise FileError(f"every demonstration asks a question of {task.source}: none are left to fit from")
    return left


def demonstrations(pairs: Iterable[Pair], prompt: PromptTemplate | ChatPrompt) -> Demonstrations:
    """Full texts: the prompt of each, and the prompt with either answer."""
    found = []
    for pair in pairs:
        before, (positive, negative) = prompt.with_answers(pair.fields, [pair.positive, pair.negative])
        found.append(Demonstration(before, before + positive, before + negative))
    return Demonstrations(found)


def right_and_wrong(item: Item) -> tuple[int, int]:
    """Places of a right and a wrong answer of an item of TruthfulQA or BBQ.

    Of TruthfulQA the best answer and the first false one. Of BBQ the labelled answer and the biased one: who is
    named by the stereotype where the question is negative, and the other group where it is not. Where the biased
    answer is right, or not known, "unknown" is the wrong one, and where that is right the first of the others.
    """
    facts = item.facts
    if "best" in facts:
        return facts["best"][0], facts["against"][0]
    right, biased, unknown = facts["label"], facts["target"], facts["unknown"]
    if biased is not None and facts["polarity"] == "nonneg":
        (biased,) = {0, 1, 2} - {biased, unknown}
    others = [place for place in (biased, unknown, 0, 1, 2) if place not in (None, right)]
    return right, others[0]


def template_of(folder: Path, given: Mapping[str, Any], systems: Mapping[str, str], model_name: str) -> PromptTemplate:
    """The prompt that settings describe, with its examples from the folder's files.

    Raises:
        FileError: a file of examples is missing, or has too few rows.
    """
    fields = dict(given)
    base = PromptTemplate.of(fields.pop("base")) if "base" in fields else None
    if (wanted := fields.pop("examples_from", None)) is not None:
        rows = dict(read_jsonl(path_of(folder, [wanted["file"]])))
        if missing := [number for number in wanted["rows"] if number not in rows]:
            raise FileError(f"{folder / wanted['file']} has no rows {missing}, which are the prompt's examples")
        fields["examples"] = [_example(rows[number]) for number in wanted["rows"]]
    # The released code says it to models of this family alone.
    system = fields.pop("system", None)
    if system is not None and system.split("-")[0] in model_name.lower():
        fields["system"] = systems[system]
    if base is not None:
        changed = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        return replace(base, **changed)
    return PromptTemplate.from_json(fields, given.get("source", "prompt"))


def _example(row: Any) -> dict[str, str]:
    return {name: row[name] for name in ("context", "question")} | {"answer": row[f"ans{row['label']}"]}


def _asked(item: Item) -> dict[str, str]:
    return {name: text for name, text in item.fields.items() if text not in item.answers}
