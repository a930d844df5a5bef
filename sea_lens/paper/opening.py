"""Opening what an analysis works on: a model of the user's with a folder of data, or the shipped one with its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .._support.json_files import plain
from .._support.storage import as_file_errors
from .._support.text_rows import read_json
from ..errors import InputError
from ..models.load import load_model
from ..testbed.bed import CHOSEN, PATH
from ..testbed.bed import load as load_testbed
from ..testbed.files import PROMPTS, write_data
from .judged import Judge, ModelJudge, ReferenceJudge
from .presets import Preset
from .subject import Subject

TESTBED = "testbed"


@dataclass(frozen=True)
class Opening:
    """What the command line says of a subject.

    Attributes:
        model: "testbed", a folder that `sea_lens.testbed.train` wrote, a Hugging Face name, or another folder.
        data: folder of data; None for the shipped model's own.
        preset: name of the settings; None for those chosen on dev of the shipped model, and "default" for others.
        limit, draws, batch_size: as in `Subject`; by default 256 texts at a time on the shipped model, else 16.
        backend, device, dtype: as in `load_model`.
        models: of the comparison of models; by default the preset's, and where it has none the model itself.
        judge: names of the models that rate generated answers, for truth and for information; empty where nobody does.
            The shipped model's answers are known, and need none.
    """

    model: str = TESTBED
    data: Path | None = None
    preset: str | None = None
    limit: int | None = None
    draws: int = 19
    batch_size: int | None = None
    backend: str = "auto"
    device: str | None = None
    dtype: str = "auto"
    models: tuple[str, ...] = ()
    judge: tuple[str, ...] = ()

    @property
    def record(self) -> dict[str, Any]:
        """What a finding depends on, for its file."""
        return {**plain(self), "data": None if self.data is None else str(self.data)}

    @property
    def testbed(self) -> Path | None:
        """The folder of a model that `sea_lens.testbed.train` wrote; None where the model is none."""
        path = PATH if self.model == TESTBED else Path(self.model)
        return path if (path / "world.json").is_file() else None

    def subject(self, folder: Path) -> Subject:
        """The subject; the shipped model's data are written to a folder `data` in the given one.

        Raises:
            InputError: a model of one's own without a folder of data, a folder that does not exist, or a single judge.
            FileError: a testbed for which nothing was chosen on dev.
        """
        batch_size = self.batch_size or (16 if self.testbed is None else 256)
        where = self.testbed or Path(self.model)
        common: dict[str, Any] = {"limit": self.limit, "draws": self.draws, "batch_size": batch_size}
        common["model_folder"] = where if where.is_dir() else None
        common["judge"] = self._judge(batch_size)
        if (path := self.testbed) is not None and self.data is None:
            bed = load_testbed(self.backend, path)
            write_data(bed, folder / "data")
            preset = chosen_on_dev(path) if self.preset is None else Preset.of(self.preset)
            common["judge"] = common["judge"] or ReferenceJudge()
            return Subject(
                self.model,
                folder / "data",
                preset,
                lambda: bed.model,
                **common,
                models=self.models,
                other=lambda name: replace(self, model=name, models=(name,)).subject(folder),
            )
        if self.data is None:
            raise InputError(f"--model {self.model} needs --data, a folder with {LAYOUT}")
        if not self.data.is_dir():
            raise InputError(f"--data {self.data}: no such folder; expected one with {LAYOUT}")
        preset = Preset.of(self.preset or "default")
        return Subject(
            self.model,
            self.data,
            preset,
            self._loading(),
            **common,
            models=self.models or preset.models,
            other=lambda name: replace(self, model=name, models=(name,)).subject(folder),
        )

    def _judge(self, batch_size: int) -> Judge | None:
        if len(self.judge) not in (0, 2):
            raise InputError(f"--judge {','.join(self.judge)}: expected two models, one for truth, one for information")
        if not self.judge:
            return None
        given: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        loaded = (load_model(name, self.backend, **given) for name in self.judge)
        return ModelJudge(lambda: (next(loaded), next(loaded)), batch_size)

    def _loading(self) -> Callable[[], Any]:
        if (path := self.testbed) is not None:
            return lambda: load_testbed(self.backend, path).model
        return lambda: load_model(self.model, self.backend, device=self.device, dtype=self.dtype)


LAYOUT = (
    "halueval/qa_data.json, truthfulqa/mc_task.json, bbq/*.jsonl, crows_pairs/crows_pairs_anonymized.csv, "
    "capability/*.jsonl and text/*.json, or some of them"
)


def chosen_on_dev(path: Path) -> Preset:
    """The settings of a testbed's edits that `sea-lens demo` chooses on its dev questions, as `train` noted them.

    Raises:
        FileError: there are none, or the file is malformed.
    """
    content = read_json(path / CHOSEN)
    with as_file_errors(path / CHOSEN):
        behaviours = {
            name: {
                "demonstrations": 10**6,
                "feature": "identity",
                "capture": {"site": options["site"]},
                "fit": {
                    "centre": options["centre"],
                    **{size: options[size] for size in ("rank", "energy") if options[size] is not None},
                },
                "layers": options["layers"],
                "strength": options["strength"],
                "prompt": PROMPTS[name],
            }
            for name, options in ((name, one["options"]) for name, one in content["behaviours"].items())
        }
        return Preset.from_json(TESTBED, {"source": "chosen on dev by sea-lens demo", "behaviours": behaviours}, {})
