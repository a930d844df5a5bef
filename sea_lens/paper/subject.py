"""What an analysis works on: a model, a folder of data, and the settings of both behaviours."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..edits.base import Edit
from ..edits.where import choose_layers
from ..errors import FileError
from ..evaluation.results import Evaluation, compare
from ..evaluation.run import Task, evaluate
from ..models.lens import Lens
from ..models.reading import Reading
from ..models.tokens import chat_tokenizer
from ..spectral.capturing import Captured
from ..spectral.controls import permuted_fits
from ..spectral.edit import SpectralEdit
from ..spectral.features import feature_map
from ..spectral.fitting import fit
from ..texts.chat_prompts import for_model
from ..texts.demonstrations import Contrasts, Demonstrations
from ..texts.items import Contrast
from . import data
from .presets import Preset, Settings

BEHAVIOURS = ("truth", "bias")
# The scores that tables show of each; the first is the one that an edit is to raise.
SCORES = {
    "truth": ("mc2", "mc1"),
    "bias": ("accuracy", "accuracy/ambiguous", "accuracy/disambiguated"),
}


@dataclass(frozen=True)
class Fitted:
    """An edit with what it was fitted from, so that it can be fitted anew to shuffled demonstrations.

    Attributes:
        edit: the edit.
        captured: the demonstrations that it was fitted from, read.
        seconds: that the fit took, without reading.
    """

    edit: SpectralEdit
    captured: Captured
    seconds: float

    def shuffled(self, draws: int) -> list[SpectralEdit]:
        """Fits of the same ranks to the demonstrations with wanted and unwanted texts swapped by the toss of a coin."""
        return permuted_fits(self.edit, self.captured, draws)


@dataclass
class Subject:
    """A model with data and settings; whatever is read of it is kept.

    Attributes:
        name: of the model: "testbed", a Hugging Face name or a folder.
        folder: of data (`sea_lens.paper.data`).
        preset: settings.
        load: returns the model.
        limit: items of each benchmark and demonstrations of each behaviour, at most.
        draws: fits to shuffled demonstrations beside an edit.
        batch_size: texts at a time.
        model_folder: where its files lie; None where it comes from the hub.
        models: names of all models of a comparison, by default this one.
        other: returns the subject of another of these names, with the same data and settings.
    """

    name: str
    folder: Path
    preset: Preset
    load: Callable[[], Any]
    limit: int | None = None
    draws: int = 19
    batch_size: int = 16
    model_folder: Path | None = None
    models: tuple[str, ...] = ()
    other: Callable[[str], "Subject"] | None = None
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def model(self) -> Any:
        """The TransformerLens model, loaded when it is first asked for."""
        return self.load()

    def all_models(self) -> Iterator["Subject"]:
        """Subjects of all models to compare, one after another, each given up before the next is opened."""
        for name in self.models or (self.name,):
            yield self if name == self.name or self.other is None else self.other(name)

    @property
    def n_layers(self) -> int:
        """Of the model."""
        return Lens.of(self.model).n_layers

    @property
    def n_heads(self) -> int:
        """Of all layers of the model."""
        lens = Lens.of(self.model)
        return lens.n_layers * lens.n_heads

    @property
    def separator(self) -> str:
        """What stands between examples in a prompt."""
        return " . " if self.preset.name == "testbed" else "\n\n"

    def edited_layers(self, behaviour: str) -> list[int]:
        """The layers that its edit acts on."""
        return list(choose_layers(self.where(behaviour)["layers"], range(self.n_layers)))

    def settings(self, behaviour: str) -> Settings:
        """Those of a behaviour."""
        return self.preset.behaviours[behaviour]

    def where(self, behaviour: str) -> dict[str, Any]:
        """Layers and strength of its edit."""
        return self.settings(behaviour).where(self.n_layers)

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

    def fitted(
        self,
        behaviour: str,
        *,
        of: str | None = None,
        places: Iterable[int] | None = None,
        feature: str | None = None,
        reading: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Fitted:
        """The edit of a behaviour, by its settings but for what is given.

        Args:
            behaviour: whose settings.
            of: whose demonstrations, by default its own; several as "truth+bias".
            places: of the demonstrations to fit from, by default all.
            feature: the feature map.
            reading: options of `sl.capture`.
            options: of `sl.fit`, beside energy or rank, centre and spectrum_power, which are the settings'.
        """
        settings = self.settings(behaviour)
        captured = self._captured(of or behaviour, {**settings.capture, **(reading or {})})
        chosen = list(range(len(captured.demonstrations)) if places is None else places)
        start = time.perf_counter()
        mapped = feature_map(feature or settings.feature)
        edit = fit(captured.drawn(chosen, mapped), **{**settings.fit, **options})
        seconds = time.perf_counter() - start
        if places is not None:
            drawn = captured.drawn(chosen, feature_map("identity"))
            captured = Captured(captured.demonstrations.picked(chosen), drawn)
        return Fitted(edit, captured, seconds)

    def evaluation(self, task: Task, edit: Edit | None = None, **where: Any) -> Evaluation:
        """Scores of a benchmark, without an edit or with one."""
        if edit is None:
            return self._keep(("unedited", task.digest), lambda: self._evaluate(task))
        return self._evaluate(task, edit=edit, **where)

    def changes(
        self, task: Task, edit: Edit, controls: Iterable[Edit] = (), scores: Iterable[str] | None = None, **where: Any
    ) -> pd.DataFrame:
        """What an edit does to the scores of a benchmark, beside what its controls do: `sl.compare`, a row a score."""
        before = self.evaluation(task)
        after = self.evaluation(task, edit, **where)
        beside = [self.evaluation(task, control, **where) for control in controls]
        frame = compare(before, after, controls=beside).to_frame().reset_index()
        if scores is not None:
            frame = frame[frame["score"].isin(list(scores))]
        return frame.assign(items=len(task.items), controls=len(beside))

    def measured(
        self, behaviour: str, name: str, edit: Edit, controls: Iterable[Edit] = (), **where: Any
    ) -> pd.DataFrame:
        """Rows of a table: what an edit does to the scores of a behaviour, under the name that the table gives it."""
        rows = self.changes(self.task(behaviour), edit, controls, SCORES[behaviour], **where)
        rows.insert(0, "behaviour", behaviour)
        rows.insert(1, "name", name)
        # In the order that tables show, and without groups that the data have no items of.
        order = {score: place for place, score in enumerate(SCORES[behaviour])}
        return rows.sort_values("score", key=lambda column: column.map(order))

    def _evaluate(self, task: Task, **edited: Any) -> Evaluation:
        return evaluate(self.model, task, **edited, batch_size=self.batch_size, progress=False)

    def _captured(self, behaviour: str, options: Mapping[str, Any]) -> Captured:
        return self._keep(
            ("captured", behaviour, tuple(sorted(options.items()))), lambda: self._read(behaviour, options)
        )

    def _read(self, behaviour: str, options: Mapping[str, Any]) -> Captured:
        names = {"site": "mlp_out", "fit_site": None, "position": "last", "neutral": "prompt"}
        given = {name: options.get(name, default) for name, default in names.items()}
        reading = Reading(**given, prepend_bos=True, max_new_tokens=options.get("max_new_tokens", 32), seed=0)
        layers = tuple(range(self.n_layers))
        return Captured.read(
            self.model, reading, self.demonstrations(behaviour), layers, batch_size=self.batch_size, progress=False
        )

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
