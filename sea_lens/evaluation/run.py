"""Running a benchmark on a model, with or without an edit."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex, TypeAlias

from .._support.arguments import as_integer
from .._support.json_files import plain
from .._support.processes import count, is_first, shared
from .._support.progress import tracked
from .._support.text_rows import has_half_character
from .._support.versions import versions
from ..edits.base import Edit, as_edit
from ..edits.in_model import warn_of_installed
from ..edits.seen import warn_of_overlap
from ..edits.where import LayerChoice, Positions, Strength, Where, warn_without_edit
from ..errors import DemonstrationError, FileError, InputError
from ..models.check import ensure_usable
from ..models.lens import Lens
from ..models.token_positions import positions_name
from ..models.tokens import chat_tokenizer
from ..texts.chat_prompts import Chat, for_model
from ..texts.prompts import PromptTemplate
from .benchmark import Asker, Benchmark, Item
from .fingerprints import edit_identity, model_identity
from .hub import PREFIX, HubData, hub_rows
from .journal import Journal
from .registry import BENCHMARKS
from .results import Evaluation

# Items that are scored in one go, and noted in the journal together.
PART = 64
Report: TypeAlias = Callable[[Mapping[str, Any]], object]
"""What is told of numbers as they come, by name; a tracker of experiments, or anything else."""


@dataclass(frozen=True)
class Task:
    """A benchmark read and checked, ready to be put to models.

    Attributes:
        benchmark: how to ask and to score.
        source: the name of its file or data set.
        items: in the file's order.
        template: the prompt, None where whole texts are scored.
        left_out: rows of the file that no item was made from.
    """

    benchmark: Benchmark
    source: str
    items: tuple[Item, ...]
    template: PromptTemplate | None
    left_out: int = 0

    @classmethod
    def read(
        cls,
        benchmark: str | Benchmark,
        path: str | os.PathLike[str] | None = None,
        *,
        prompt: PromptTemplate | str | os.PathLike[str] | None = None,
        limit: SupportsIndex | None = None,
    ) -> "Task":
        """Read a benchmark; arguments and errors as in `evaluate`."""
        if not isinstance(benchmark, (str, Benchmark)):
            raise InputError(f"expected a benchmark or its name, got {benchmark!r}")
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise InputError(f"expected the path of a file, got {path!r}")
        if isinstance(benchmark, str) and benchmark not in BENCHMARKS:
            raise InputError(f"unknown benchmark {benchmark!r}: expected one of {', '.join(BENCHMARKS)}")
        asked = BENCHMARKS[benchmark]() if isinstance(benchmark, str) else benchmark
        if prompt is not None:
            if not asked.prompts:
                raise InputError(f"benchmark {asked.name!r} scores whole texts: it takes no prompt")
            prompt = PromptTemplate.of(prompt)
        chosen, source, items, left_out = _items(asked, path)
        template = None
        if chosen.prompts:
            template = PromptTemplate.of(chosen.default_prompt(items) if prompt is None else prompt)
            template.check(chosen.prompts)
        for item in items:
            if any(map(has_half_character, item.texts)):
                raise FileError(f"{path or source}, row {item.row}: holds half a character (a lone surrogate)")
        first = len(items) if limit is None else as_integer(limit, "limit", least=1)
        return cls(chosen, source, tuple(items[:first]), template, left_out)

    @property
    def questions(self) -> list[str]:
        """What each item asks: its prompt's fields but the answers, and the whole text where there is no prompt."""
        asked = [[text for text in item.fields.values() if text not in item.answers] for item in self.items]
        return ["\n".join(own or item.answers) for own, item in zip(asked, self.items, strict=True)]

    @property
    def digest(self) -> str:
        """SHA-256 of the items."""
        content = repr([(item.row, item.fields, item.answers, item.facts) for item in self.items])
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def evaluate(
    model: Any,
    benchmark: str | Benchmark | Task,
    path: str | os.PathLike[str] | None = None,
    *,
    edit: Edit | None = None,
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    prompt: PromptTemplate | str | os.PathLike[str] | None = None,
    chat: Chat = "auto",
    limit: SupportsIndex | None = None,
    batch_size: SupportsIndex = 16,
    prepend_bos: bool = True,
    max_new_tokens: SupportsIndex = 256,
    journal: str | os.PathLike[str] | None = None,
    progress: bool = True,
    seed: SupportsIndex = 0,
    report: Report | None = None,
) -> Evaluation:
    """Run a benchmark on a model, with an edit in it if one is given.

    Args:
        model: a TransformerLens model. Its own hooks, if any, stay.
        benchmark: the name of one in `sea_lens.evaluation.registry`, a `Benchmark` of one's own, or a `Task` that was
            read before (without path, prompt and limit).
        path: the benchmark's file, or "hf:owner/name", "hf:owner/name:split" or "hf:owner/name:config:split" for a data
            set on the Hugging Face hub; by default the benchmark's own data set there. The hub needs a network.
        edit: an edit of any method; none by default.
        layers, strength, combine, positions: as in `applied`.
        prompt: a named prompt, a JSON file with one, or a `PromptTemplate`; the benchmark's own by default.
        chat: put the prompt into the tokenizer's chat template: "auto" where it has one, True, or False.
        limit: only the first so many items.
        batch_size: rows at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        max_new_tokens: longest generated answer, in tokens; at most half the model's context is used for it.
        journal: a file in which finished items are noted. An evaluation that was interrupted goes on from it, and ends
            with the same results; delete it when they are safe.
        progress: show a progress bar.
        seed: of the bootstrap intervals.
        report: called at the end with the scores by "benchmark/score", as trackers of experiments take them
            (`report=wandb.log`).

    Returns:
        Scores with intervals, and one row for each item.

    Raises:
        InputError: unknown benchmark, prompt, layers, `combine` or positions; a benchmark without a data set of its own
            and without a path; a prompt that asks for fields the benchmark does not have; an edit that leaves some
            tokens without a probability where completions are scored; a journal beside positions that are a function;
            or a model that drops out units at random.
        FileError: a missing or malformed file; names the row.
        MismatchError: the edit is for another model, or the journal belongs to another evaluation.
        DemonstrationError: an answer that adds no token to its prompt; names the row.
        ActivationError: a log-probability that is NaN or infinite.

    Warns:
        UserWarning: items ask what the edit was fitted from or chosen on; says how many. Layers, a strength, `combine`
            or positions are given without an edit.

    Example:
        >>> import json, pathlib, tempfile
        >>> rows = [{"query": "Q: what is the river of Delkeld ? A:", "choices": ["Mirev", "Selwyn"], "gold": 0}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "rows.json")
        ...     _ = path.write_text(json.dumps(rows))
        ...     found = sl.evaluate(bed.model, "capability", path, prompt="query")
        >>> found.scores["accuracy"]
        0.0
    """
    lens = Lens.of(model)
    ensure_usable(lens)
    if isinstance(benchmark, Task):
        if not path is prompt is limit is None:
            raise InputError("a task has its path, prompt and limit already: give them to Task.read")
        task = benchmark
    else:
        task = Task.read(benchmark, path, prompt=prompt, limit=limit)
    chosen, items = task.benchmark, task.items
    asked = None
    if task.template is not None:
        asked = for_model(task.template, chat_tokenizer(lens), chat, answers=chosen.scoring)
    longest = as_integer(max_new_tokens, "max_new_tokens", least=1)
    batch_size, seed = as_integer(batch_size, "batch_size", least=1), as_integer(seed, "seed", least=0)
    if edit is None:
        warn_without_edit(layers=layers, strength=strength, combine=combine, positions=positions)
    edit = None if edit is None else as_edit(edit)
    where = None
    if edit is not None:
        where = edit.check(model, layers, strength, combine, positions, scoring=chosen.scoring)
        if callable(where.positions) and journal is not None:
            raise InputError("a journal cannot tell one function from another: expected positions by name beside it")
    else:
        warn_of_installed(model, "a benchmark is evaluated")

    if edit is not None:
        warn_of_overlap(edit, task.questions, "items")

    def edited() -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if edit is None or where is None else edit.put(model, where)

    asker = Asker(lens, asked, batch_size, prepend_bos, edited, edit is not None, longest)
    provenance = {
        "benchmark": chosen.name,
        "data": {"source": task.source, "items": len(items), "left_out": task.left_out, "sha256": task.digest},
        "model": model_identity(lens),
        "edit": None if edit is None or where is None else edit_identity(edit) | _applied(edit, where, combine),
        "prompt": asked.record() if asked is not None else None,
        "options": {"batch_size": batch_size, "prepend_bos": prepend_bos, "max_new_tokens": longest},
        "versions": versions(),
    }
    notes = Journal(journal, provenance) if journal is not None else None
    parts = [items[start : start + PART] for start in range(0, len(items), PART)]
    finished = [found for number, part in enumerate(parts) if (found := _noted(notes, number, part)) is not None]

    def asked_of(part: Sequence[Item]) -> list[dict[str, Any]]:
        try:
            return plain(chosen.ask(asker, part))
        except DemonstrationError as error:
            raise DemonstrationError(f"{task.source}, {error}") from error

    # As many parts at a time as there are processes, so that what is finished is noted at once.
    rounds = range(len(finished), len(parts), count())
    for start in tracked(rounds, chosen.name, len(rounds), show=progress):
        for found in shared(parts[start : start + count()], asked_of):
            if notes is not None:
                notes.add(len(finished), found)
            finished.append(found)
    evaluation = Evaluation(chosen, [row for found in finished for row in found], provenance, seed)
    if report is not None and is_first():
        report({f"{chosen.name}/{name}": value for name, value in evaluation.scores.items()})
    return evaluation


def _noted(notes: Journal | None, number: int, part: Sequence[Item]) -> list[dict[str, Any]] | None:
    """What the journal has of a part, None where it has nothing.

    Raises:
        FileError: it has rows of other items.
    """
    found = None if notes is None else notes.parts.get(number)
    if found is None or notes is None:
        return None
    rows = [row.get("row") if isinstance(row, dict) else None for row in found] if isinstance(found, list) else None
    if rows != [item.row for item in part]:
        raise FileError(f"{notes.path} holds other rows than part {number} of the items: delete it to start anew")
    return found


def _applied(edit: Edit, where: Where, combine: str | None) -> dict[str, Any]:
    """How an edit is applied, for the provenance."""
    positions = {} if where.positions == "all" else {"positions": positions_name(where.positions)}
    return {"strength": where.strengths, "combine": combine or edit.defaults.combine, **positions}


def _items(benchmark: Benchmark, path: str | os.PathLike[str] | None) -> tuple[Benchmark, str, list[Item], int]:
    """The benchmark that the rows belong to, the name of their file, the items, and how many rows gave none."""
    if path is None:
        if benchmark.hub is None:
            raise InputError(f"benchmark {benchmark.name!r} needs its file: give a path, or hf:owner/name")
        source, rows = benchmark.hub.name, list(hub_rows(benchmark.hub))
    elif os.fspath(path).startswith(PREFIX):
        source, rows = os.fspath(path), list(hub_rows(HubData.parse(os.fspath(path))))
    else:
        source, rows = Path(path).name, list(benchmark.rows(path))
    benchmark = benchmark.for_rows(rows)
    # Every row is checked, also those beyond the limit: a malformed file is refused whole.
    items = benchmark.read(os.fspath(path) if path is not None else source, rows)
    if not items:
        raise FileError(f"{path or source} has no rows")
    return benchmark, source, items, len(rows) - len({item.row for item in items})
