"""What a subject is asked and fitted from: the tasks and demonstrations that a folder of data has for a model."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import FileError
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

    def missing(self, behaviour: str) -> str:
        """Why a behaviour cannot be looked at; nothing where it can."""
        try:
            self.task(behaviour)
            if not self._ready_made(behaviour).is_file():
                self._pairs(behaviour)
        except FileError as error:
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

    def other_tasks(self) -> dict[str, Task]:
        """Every other benchmark of the folder, by the name of its file.

        Raises:
            FileError: there are none, or one is malformed.
        """
        found = {}
        for part, benchmark, endings in (
            ("capability", "capability", (".jsonl", ".json")),
            ("text", "perplexity", (".json",)),
        ):
            if (self.folder / part).is_dir():
                for path in data.paths_in(self.folder, part, endings):
                    found[path.stem.replace("_", " ")] = (benchmark, path)
        if not found:
            raise FileError(f"{self.folder} has no capability/*.jsonl and no text/*.json")
        return {
            name: self._keep(("task", path), lambda b=benchmark, p=path: data.limited(Task.read(b, p), self.limit))
            for name, (benchmark, path) in found.items()
        }

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
            found = Demonstrations.from_jsonl(path)
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
