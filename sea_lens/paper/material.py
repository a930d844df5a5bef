"""What a subject is asked and fitted from: the tasks and demonstrations that a folder of data has for a model."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import FileError, SeaLensError
from ..evaluation.run import Task
from ..models.lens import Lens
from ..models.tokens import chat_tokenizer
from ..texts.chat_prompts import for_model
from ..texts.demonstrations import Contrasts, Demonstrations
from ..texts.items import Contrast
from . import data
from .presets import Preset, Settings

BEHAVIOURS = ("truth", "bias")


@dataclass
class Material:
    """A model, by name, with data and settings; whatever is read is kept.

    Attributes:
        name: of the model: "testbed", a Hugging Face name or a folder.
        folder: of data (`sea_lens.paper.data`).
        preset: settings.
        load: returns the model.
        limit: items of each benchmark and demonstrations of each behaviour, at most.
    """

    name: str
    folder: Path
    preset: Preset
    load: Callable[[], Any]
    limit: int | None = None
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False, kw_only=True)

    @cached_property
    def model(self) -> Any:
        """The TransformerLens model, loaded when it is first asked for; chat templates are its tokenizer's."""
        return self.load()

    @property
    def separator(self) -> str:
        """What stands between examples in a prompt."""
        return " . " if self.preset.name == "testbed" else "\n\n"

    def settings(self, behaviour: str) -> Settings:
        """Those of a behaviour."""
        return self.preset.behaviours[behaviour]

    def behaviours(self) -> list[str]:
        """Those that the folder has both demonstrations and a benchmark of."""
        return [name for name in BEHAVIOURS if not self.missing(name)]

    def reasons(self) -> tuple[str, ...]:
        """Why the others cannot be looked at."""
        return tuple(f"{name}: {reason}" for name in BEHAVIOURS if (reason := self.missing(name)))

    def about(self) -> list[str]:
        """What is fitted and measured, a line for each behaviour."""
        told = []
        for behaviour in self.behaviours():
            one, task = self.settings(behaviour), self.task(behaviour)
            options = {"site": "mlp_out", **one.capture, "feature": one.feature, **one.fit}
            named = ", ".join(f"{name} {value}" for name, value in options.items() if value not in (None, False))
            told.append(
                f"{behaviour}: {len(task.items)} questions of {task.benchmark.name}; the edit: {named}, layers "
                f"{one.layers}, strength {one.strength:g} ({self.preset.source})"
            )
        return told

    def missing(self, behaviour: str) -> str:
        """Why a behaviour cannot be looked at; nothing where it can."""
        try:
            self.task(behaviour)
            if (path := self._ready_made(behaviour)).is_file():
                self._keep(("ready made", behaviour), lambda: Demonstrations.from_jsonl(path))
            else:
                self._pairs(behaviour)
        except SeaLensError as error:
            return str(error)
        return ""

    def task(self, behaviour: str) -> Task:
        """The benchmark of a behaviour.

        Raises:
            FileError: the folder has no such file, or a malformed one.
        """
        read = {"truth": data.truth_task, "bias": data.bias_task}[behaviour]
        return self._keep(
            ("task", behaviour), lambda: data.limited(read(self.folder, self._template(behaviour)), self.limit)
        )

    def demonstrations(self, behaviour: str) -> Demonstrations:
        """Those of a behaviour, or of several, "truth+bias"; none of them asks a question of its benchmark."""
        return self._keep(("demonstrations", behaviour), lambda: self._demonstrations(behaviour))

    def crows_pairs(self) -> Task:
        """CrowS-Pairs.

        Raises:
            FileError: the folder has no such file, or a malformed one.
        """
        path = data.path_of(self.folder, data.CROWS_PAIRS)
        return self._keep("crows_pairs", lambda: data.limited(Task.read("crows_pairs", path), self.limit))

    def other_tasks(self) -> tuple[dict[str, Task], list[str]]:
        """Every other benchmark of the folder, by the name of its file; a text of the same name is "NAME, text".

        Returns:
            Those that can be read, and what is wrong with the others.

        Raises:
            FileError: there are no files.
        """
        found = {}
        for part, benchmark, endings in (
            ("capability", "capability", (".jsonl", ".json")),
            ("text", "perplexity", (".json",)),
        ):
            for path in sorted(path for path in (self.folder / part).glob("*") if path.suffix in endings):
                name = path.stem.replace("_", " ")
                found[f"{name}, {part}" if name in found else name] = (benchmark, path)
        if not found:
            raise FileError(f"{self.folder} has no capability/*.jsonl and no text/*.json")
        tasks, wrong = {}, []
        for name, (benchmark, path) in found.items():
            try:
                tasks[name] = self._keep(
                    ("task", path), lambda b=benchmark, p=path: data.limited(Task.read(b, p), self.limit)
                )
            except SeaLensError as error:
                wrong.append(f"{name}: {error}")
        return tasks, wrong

    def contrasts(self, behaviour: str) -> Contrasts:
        """The questions of the benchmark: the right answer against a wrong one (`data.right_and_wrong`)."""
        task, found = self.task(behaviour), []
        assert task.template is not None
        prompt = for_model(task.template, chat_tokenizer(Lens.of(self.model)), answers=True)
        for item in task.items:
            answers = [item.answers[place] for place in data.right_and_wrong(item)]
            before, (target, foil) = prompt.with_answers(item.fields, answers)
            found.append(Contrast(before, target, foil))
        return Contrasts(found)

    def _demonstrations(self, behaviour: str) -> Demonstrations:
        parts = behaviour.split("+")
        if len(parts) > 1:
            return Demonstrations(itertools.chain.from_iterable(map(self.demonstrations, parts)))
        most = min(self.settings(behaviour).demonstrations, self.limit or 10**9)
        if (path := self._ready_made(behaviour)).is_file():
            found = self._keep(("ready made", behaviour), lambda: Demonstrations.from_jsonl(path))
            return found.picked(data.drawn(most, len(found)))
        pairs = self._pairs(behaviour)
        prompt = for_model(self._template(behaviour), chat_tokenizer(Lens.of(self.model)), answers=True)
        return data.demonstrations((pairs[place] for place in data.drawn(most, len(pairs))), prompt)

    def _ready_made(self, behaviour: str) -> Path:
        return self.folder / "demonstrations" / f"{behaviour}.jsonl"

    def _pairs(self, behaviour: str) -> list[data.Pair]:
        read = {"truth": data.truth_pairs, "bias": data.bias_pairs}[behaviour]
        return self._keep(("pairs", behaviour), lambda: data.without_asked(read(self.folder), self.task(behaviour)))

    def _template(self, behaviour: str) -> Any:
        settings = self.settings(behaviour)
        return data.template_of(self.folder, settings.prompt, self.preset.systems, self.name)

    def _keep(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]
