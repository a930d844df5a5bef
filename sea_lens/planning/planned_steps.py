"""The steps of a plan: what each holds, of what is counted on an empty model and what follows from sizes."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from ..errors import DemonstrationError
from ..evaluation.run import Task
from ..models.configuration import text_config
from ..models.load import DTYPES
from ..models.sites import Site
from . import statistics_memory as of_fit
from .counted_steps import COUNTED_ITEMS, CountedSteps, Counts
from .loading_memory import loading
from .plans import Part, Step

_CALLS = {
    "load": "load_model",
    "capture": "capture",
    "fit": "fit",
    "capture, store": "capture(store=)",
    "fit, store": "fit, of a store",
    "effect": "effect",
    "path": "layer_contributions(method='path')",
    "direct": "head_contributions(method='direct')",
    "gradient": "head_contributions(method='gradient')",
    "sufficiency": "head_contributions(method='sufficiency')",
    "generate": "generate",
    "evaluate": "evaluate",
}
STEPS = tuple(_CALLS)


def stored_dtype(config: Any) -> torch.dtype:
    """What weights are stored in as a configuration says; float32 where it does not."""
    stored = getattr(text_config(config), "dtype", None)
    stored = getattr(torch, stored, None) if isinstance(stored, str) else stored
    return stored if stored in DTYPES else torch.float32


@dataclass(frozen=True)
class PlannedSteps:
    """The steps of a plan, made of what is counted and of what is computed."""

    counted: CountedSteps
    on_cpu: bool
    rank: int | None
    new_tokens: int
    task: Task | None

    def step(self, name: str) -> Step:
        """The step of a name."""
        made = {
            "load": self._load,
            "capture": self._capture,
            "fit": self._fit,
            "capture, store": self._capture_with_store,
            "fit, store": self._fit_of_store,
        }.get(name)
        if made is not None:
            return made()
        try:
            step = self._counted(name, self._of_passes(name), [self._edit])
        # Of these texts alone.
        except DemonstrationError as error:
            return Step(name, _CALLS[name], (self._weights,), note=f"cannot be made of these texts: {error}")
        return replace(step, note=self._note(name))

    def _of_passes(self, name: str) -> Counts:
        counted, task = self.counted, self.task
        if name == "generate":
            return counted.generate(self.new_tokens)
        if name == "evaluate":
            assert task is not None
            return counted.evaluate(task)
        return getattr(counted, name)()

    def _note(self, name: str) -> str:
        if name == "path":
            return f"at least so many passes; {self.counted.path_at_worst} times as many where the integral is hard"
        if name == "generate":
            return f"up to {self.new_tokens} new tokens of each prompt"
        if name == "evaluate" and self.task is not None and len(self.task.items) > COUNTED_ITEMS:
            return f"passes of the first {COUNTED_ITEMS} of {len(self.task.items)} items, as many times over"
        return ""

    @cached_property
    def _weights(self) -> Part:
        return Part("weights", self.counted.model.weights)

    @cached_property
    def _layout(self) -> of_fit.Layout:
        """Of what is captured."""
        counted = self.counted
        units, d = Site.of(counted.site).shape(counted.model.lens)
        return of_fit.Layout(len(counted.demonstrations), len(counted.layers), units, d, counted.model.dtype.itemsize)

    @cached_property
    def _read(self) -> Counts:
        return self.counted.capture()

    @property
    def _edit(self) -> Part:
        return Part("edit", of_fit.factors(self._layout, self.counted.rank), True)

    def _load(self) -> Step:
        config = self.counted.model.config
        parts = [self._weights, Part("check, conversion", loading(self.counted.model, stored_dtype(config).itemsize))]
        if not self.on_cpu:
            parts.append(Part("weights on their way", self._weights.bytes, True))
        return Step("load", _CALLS["load"], tuple(parts))

    def _capture(self) -> Step:
        layout = self._layout
        if not layout.are_sums:
            return self._counted("capture", self._read, [Part("activations", layout.activations, True)])
        sums = [Part("sums", layout.sums), Part("adding up", layout.adding)]
        on_host = [] if self.on_cpu else [Part("sums on the host", layout.sums, True)]
        return self._counted("capture", self._read, [*sums, *on_host])

    def _capture_with_store(self) -> Step:
        shard = Part("shard", of_fit.writing_shard(self._layout), True)
        return replace(self._counted("capture, store", self._read, [shard]), disk=self._layout.activations)

    def _fit(self) -> Step:
        layout = self._layout
        name = "sums" if layout.are_sums else "activations"
        return self._decomposed("fit", Part(name, of_fit.kept(layout), True))

    def _fit_of_store(self) -> Step:
        one = replace(self._layout, layers=1)
        return self._decomposed("fit, store", Part("sums of a layer", one.sums if one.are_sums else 0))

    def _decomposed(self, name: str, statistics: Part) -> Step:
        layout, few = self._layout, self.counted.rank
        decomposition = of_fit.fitting(layout, few)
        worst, note = 0, ""
        if self.rank is None:
            most = min(layout.n, layout.d)
            worst = of_fit.fitting(layout, None) + of_fit.factors(layout, most)
            worst = max(0, worst - decomposition - self._edit.bytes)
            note = f"{few} directions of each side; at worst {most}"
        parts = (self._weights, statistics, Part("decomposition", decomposition), self._edit)
        return Step(name, _CALLS[name], parts, worst=worst, disk=self._edit.bytes, note=note)

    def _counted(self, name: str, counts: Counts, more: Iterable[Part]) -> Step:
        parts = (self._weights, Part("pass", counts.memory), *more)
        return Step(name, _CALLS[name], parts, 0, counts.forward, counts.backward, counts.tokens)
