"""What an analysis works on: a model, a folder of data, and the settings of both behaviours."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..edits.base import Edit
from ..edits.where import choose_layers
from ..evaluation.results import Evaluation, compare
from ..evaluation.run import Task, evaluate
from ..models.lens import Lens
from ..models.reading import Reading
from ..spectral.capturing import Captured
from ..spectral.controls import permuted_fits
from ..spectral.edit import SpectralEdit
from ..spectral.features import feature_map
from ..spectral.fitting import fit
from .judged import Judge
from .material import Material

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
class Subject(Material):
    """A model with its material, and what is measured of it; attributes of `Material`, and these.

    Attributes:
        draws: fits to shuffled demonstrations beside an edit.
        batch_size: texts at a time.
        model_folder: where its files lie; None where it comes from the hub.
        models: names of all models of a comparison, by default this one.
        other: returns the subject of another of these names, with the same data and settings.
        judge: rates generated answers; None where nobody does.
    """

    draws: int = 19
    batch_size: int = 16
    model_folder: Path | None = None
    models: tuple[str, ...] = ()
    other: Callable[[str], "Subject"] | None = None
    judge: Judge | None = None

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

    def edited_layers(self, behaviour: str) -> list[int]:
        """The layers that its edit acts on."""
        return list(choose_layers(self.where(behaviour)["layers"], range(self.n_layers)))

    def where(self, behaviour: str) -> dict[str, Any]:
        """Layers and strength of its edit."""
        return self.settings(behaviour).where(self.n_layers)

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
            # A benchmark may ask the same items otherwise than another does.
            return self._keep(("unedited", task.benchmark, task.digest), lambda: self._evaluate(task))
        return self._evaluate(task, edit=edit, **where)

    def changes(
        self,
        task: Task,
        edit: Edit,
        controls: Iterable[Edit] = (),
        scores: Iterable[str] | None = None,
        *,
        after: Evaluation | None = None,
        reference: tuple[str, Evaluation] | None = None,
        **where: Any,
    ) -> pd.DataFrame:
        """What an edit does to the scores of a benchmark, beside what its controls do: `sl.compare`, a row a score.

        Args:
            task: the benchmark.
            edit: the edit.
            controls: put in its place.
            scores: that are shown, by default all.
            after: its evaluation, where that was made already.
            reference: name and evaluation of another edit: columns reference, more, more_low and more_high have what
                this edit does beyond it, paired by items.
            where: arguments of `applied`.
        """
        before, after = self.evaluation(task), after or self.evaluation(task, edit, **where)
        beside = [self.evaluation(task, control, **where) for control in controls]
        frame = compare(before, after, controls=beside).to_frame().reset_index()
        if reference is not None:
            name, other = reference
            more = compare(other, after).to_frame().reindex(frame["score"])
            frame = frame.assign(reference=name)
            for column, ours in (("difference", "more"), ("low", "more_low"), ("high", "more_high")):
                frame[ours] = more[column].to_numpy()
        if scores is not None:
            frame = frame[frame["score"].isin(list(scores))]
        return frame.assign(items=len(task.items), controls=len(beside))

    def measured(
        self, behaviour: str, name: str, edit: Edit, controls: Iterable[Edit] = (), **options: Any
    ) -> pd.DataFrame:
        """Rows of a table: what an edit does to the scores of a behaviour, under the name that the table gives it.

        Options are those of `changes`.
        """
        rows = self.changes(self.task(behaviour), edit, controls, SCORES[behaviour], **options)
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
