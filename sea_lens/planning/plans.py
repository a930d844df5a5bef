"""`Plan`: what every step takes, whether it fits, and what would make it fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .quantities import shown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Part:
    """Something that a step holds when it holds most.

    Attributes:
        name: what it is.
        bytes: its size.
        on_host: whether it is in the machine's memory, wherever the model is.
    """

    name: str
    bytes: int
    on_host: bool = False


@dataclass(frozen=True)
class Step:
    """What one call takes.

    Attributes:
        name: of the step.
        call: how a user calls it.
        parts: what it holds at most, the weights included.
        worst: what it holds more, where the data is as bad as it can be.
        forward, backward: passes of the model.
        tokens: that the forward passes read, padding counted.
        disk: bytes that it writes.
        note: what its numbers mean.
        advice: what would make it fit, where it does not.
    """

    name: str
    call: str
    parts: tuple[Part, ...]
    worst: int = 0
    forward: int = 0
    backward: int = 0
    tokens: int = 0
    disk: int = 0
    note: str = ""
    advice: str = ""

    @property
    def memory(self) -> int:
        """All that it holds at most, in bytes, above a process that has imported the same."""
        return sum(part.bytes for part in self.parts)

    @property
    def on_device(self) -> int:
        """What of it is where the model is."""
        return sum(part.bytes for part in self.parts if not part.on_host)

    @property
    def on_host(self) -> int:
        """What of it is in the machine's memory although the model is not."""
        return self.memory - self.on_device


@dataclass(frozen=True)
class Plan:
    """What every step takes on one model, texts and device.

    Attributes:
        model: facts of the model, JSON values.
        texts: facts of the texts, JSON values.
        device: "cpu", or the accelerator that the model is to be on.
        limit: bytes that there are for the model's steps.
        steps: in the order in which they are called.
    """

    model: dict[str, Any]
    texts: dict[str, Any]
    device: str
    limit: int
    steps: Sequence[Step]

    def __getitem__(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    @property
    def on_cpu(self) -> bool:
        """Whether the model is in the machine's memory."""
        return self.device == "cpu"

    def held(self, step: Step) -> int:
        """What counts towards the limit."""
        return step.memory if self.on_cpu else step.on_device

    @property
    def fits(self) -> bool:
        """Whether every step does."""
        return all(self.held(step) <= self.limit for step in self.steps)

    def to_frame(self) -> "pd.DataFrame":
        """One row a step: bytes, passes, tokens, whether it fits."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "memory": step.memory,
                    "on_device": step.memory if self.on_cpu else step.on_device,
                    "on_host": step.memory if self.on_cpu else step.on_host,
                    "at_worst": step.memory + step.worst,
                    "disk": step.disk,
                    "forward_passes": step.forward,
                    "backward_passes": step.backward,
                    "tokens": step.tokens,
                    "fits": self.held(step) <= self.limit,
                    "advice": step.advice,
                }
                for step in self.steps
            ],
            index=[step.name for step in self.steps],
        ).rename_axis("step")

    @property
    def record(self) -> dict[str, Any]:
        """All of it as JSON values; sizes in bytes."""
        steps = [
            {
                "step": step.name,
                "call": step.call,
                "memory": step.memory,
                "parts": [{"name": one.name, "bytes": one.bytes, "on_host": one.on_host} for one in step.parts],
                "at_worst": step.memory + step.worst,
                "disk": step.disk,
                "forward_passes": step.forward,
                "backward_passes": step.backward,
                "tokens": step.tokens,
                "fits": self.held(step) <= self.limit,
                "note": step.note,
                "advice": step.advice,
            }
            for step in self.steps
        ]
        about = {"model": self.model, "texts": self.texts, "device": self.device, "limit": self.limit}
        return {**about, "fits": self.fits, "steps": steps}

    @property
    def rows(self) -> list[dict[str, str]]:
        """The table of `str`, as texts."""
        rows = []
        for step in self.steps:
            places = {"memory": shown(step.memory)}
            if not self.on_cpu:
                places = {"GPU": shown(step.on_device), "host": shown(step.on_host) if step.on_host else ""}
            rows.append(
                {
                    "step": step.name,
                    **places,
                    "made of": ", ".join(f"{part.name} {shown(part.bytes)}" for part in step.parts if part.bytes),
                    "at worst": shown(step.memory + step.worst) if step.worst else "",
                    "disk": shown(step.disk) if step.disk else "",
                    "passes": _passes(step),
                    "tokens": _rounded(step.tokens) if step.tokens else "",
                    "fits": "yes" if self.held(step) <= self.limit else "no",
                }
            )
        return rows

    @property
    def heading(self) -> str:
        """What is planned for, in a few lines."""
        facts, texts = self.model, self.texts
        sizes = f"{facts['n_layers']} layers, d {facts['d_model']}, vocabulary {facts['d_vocab']}"
        return "\n".join(
            [
                f"{facts['name']}: {facts['parameters']:,} parameters, {sizes}; {facts['dtype']}, {facts['backend']}",
                f"{texts['demonstrations']} demonstrations, {texts['contrasts']} contrasts; {texts['tokens']}",
                f"{self.device} with {shown(self.limit)}: {'all steps fit' if self.fits else 'not all steps fit'}",
            ]
        )

    def __str__(self) -> str:
        rows = self.rows
        widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0] if name != "made of"}
        lines = ["  ".join(name.ljust(width) for name, width in widths.items())]
        for row, step in zip(rows, self.steps, strict=True):
            lines.append("  ".join(row[name].ljust(width) for name, width in widths.items()).rstrip())
            lines.append(f"    {row['made of']}")
            lines += [f"    {text}" for text in (step.note, step.advice) if text]
        return "\n".join([self.heading, "", *lines])


def _passes(step: Step) -> str:
    if not step.forward:
        return ""
    return _rounded(step.forward) + (f" + {_rounded(step.backward)} back" if step.backward else "")


def _rounded(number: int) -> str:
    """A number with three digits that count."""
    if number < 1000:
        return str(number)
    size = 10 ** (int(math.log10(number)) - 2)
    return f"{round(number / size) * size:,}"
