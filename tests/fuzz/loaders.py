"""What reads the files of the corpus, and what each must make of them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sea_lens as sl
from sea_lens.evaluation.journal import Journal
from sea_lens.evaluation.registry import BENCHMARKS
from sea_lens.evaluation.run import Task
from sea_lens.evaluation.tuning_results import RESULTS, Tuning

from .corpus import IDENTITY, File
from .oracles import impossible_covariance, impossible_edit, impossible_evaluation

Loader = Callable[[Path, File], str | None]
"""Reads a file made of another, and says what is impossible about what it gave."""


def _edit(path: Path, original: File) -> str | None:
    return impossible_edit(sl.load_edit(path))


def _covariance(path: Path, original: File) -> str | None:
    return impossible_covariance(sl.CrossCovariance.load(path))


def _evaluation(path: Path, original: File) -> str | None:
    return impossible_evaluation(sl.Evaluation.load(path))


def _journal(path: Path, original: File) -> str | None:
    parts = Journal(path, IDENTITY).parts
    if sorted(parts) != list(range(len(parts))):
        return f"parts {sorted(parts)}"
    return None


def _tuning(path: Path, original: File) -> str | None:
    os.replace(path, path.parent / RESULTS)  # noqa: PTH105
    found = Tuning.load(path.parent)
    chosen = found.table[found.table["chosen"]]
    kept = found.table[
        [all(row[name] <= most for name, most in found.limits.items()) for _, row in found.table.iterrows()]
    ]
    return None if len(chosen) == 1 and chosen["accuracy"].item() == kept["accuracy"].max() else "choice"


def _items(read: Callable[[Path], Any]) -> Loader:
    def load(path: Path, original: File) -> str | None:
        found = read(path)
        type(found)(list(found))
        texts = [value for item in found for value in vars(item).values()]
        return None if all(isinstance(text, str) and text.strip() for text in texts) else "an empty text"

    return load


def _task(benchmark: str) -> Loader:
    def load(path: Path, original: File) -> str | None:
        task = Task.read(benchmark, path)
        rows = [item.row for item in task.items]
        if not rows or len(set(rows)) < len(rows):
            return f"rows {rows}"
        if task.template is not None and not all(task.template.render(item.fields) for item in task.items):
            return "an empty prompt"
        for item in task.items:
            "".join(item.texts).encode()
        return None

    return load


def _prompt(path: Path, original: File) -> str | None:
    template = sl.PromptTemplate.of(path)
    template.check({"question"})
    rendered = template.render({"question": "why"})
    return None if len(rendered) < 10 * len(original.content) + 20_000 else f"a prompt of {len(rendered)} characters"


LOADERS: dict[str, Loader] = {
    "edit": _edit,
    "covariance": _covariance,
    "evaluation": _evaluation,
    "journal": _journal,
    "tuning": _tuning,
    "demonstrations": _items(sl.Demonstrations.from_jsonl),
    "contrasts": _items(sl.Contrasts.from_jsonl),
    "halueval": _items(sl.Demonstrations.from_halueval),
    "truthfulqa_demonstrations": _items(sl.Demonstrations.from_truthfulqa),
    "bbq_demonstrations": _items(sl.Demonstrations.from_bbq),
    "prompt": _prompt,
    **{f"task:{name}": _task(name) for name in BENCHMARKS},
}
