"""Settings of an edit and of the questions that it is measured on, by name: `presets.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class Settings:
    """How the edit of one behaviour is fitted, where it acts, and how questions are put.

    Attributes:
        demonstrations: how many at most.
        feature: name of the feature map.
        fit: arguments of `sl.fit`.
        layers: "all", "first-L", "last-L", or "last-L/N" for L of the N layers of the paper's model, the same share of
            those of any other.
        strength: of the edit.
        prompt: the fields of a `PromptTemplate`, perhaps with "base", the name of one that they change, and with
            "examples_from", rows of a file of the data folder.
        capture: arguments of `sl.capture`.
    """

    demonstrations: int
    feature: str
    fit: Mapping[str, Any]
    layers: str
    prompt: Mapping[str, Any]
    strength: float = 1.0
    capture: Mapping[str, Any] = field(default_factory=dict)

    def where(self, n_layers: int) -> dict[str, Any]:
        """Layers and strength on a model of so many layers, as `applied` takes them."""
        side, _, count = self.layers.partition("-")
        edited, slash, of = count.partition("/")
        if not count:
            return {"layers": self.layers, "strength": self.strength}
        n = max(1, round(int(edited) * n_layers / int(of))) if slash else min(int(edited), n_layers)
        return {"layers": f"{side}-{n}", "strength": self.strength}


@dataclass(frozen=True)
class Preset:
    """Settings for both behaviours.

    Attributes:
        name: of the preset.
        source: where the settings come from.
        models: those of the paper, by their names on the Hugging Face hub.
        behaviours: settings of "truth" and "bias".
        systems: texts that prompts name as their system prompt.
    """

    name: str
    source: str
    models: tuple[str, ...]
    behaviours: Mapping[str, Settings]
    systems: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, name: str, content: Mapping[str, Any], systems: Mapping[str, str]) -> "Preset":
        """The preset that a JSON object describes."""
        behaviours = {behaviour: Settings(**one) for behaviour, one in content["behaviours"].items()}
        return cls(name, content["source"], tuple(content.get("models", ())), behaviours, systems)

    @classmethod
    def of(cls, name: str) -> "Preset":
        """The preset of this name.

        Raises:
            InputError: there is none; names those that there are.
        """
        if name not in _presets():
            raise InputError(f"unknown preset {name!r}: expected one of {', '.join(_presets())}")
        return _presets()[name]


@cache
def _presets() -> dict[str, Preset]:
    package = files(__package__ or "sea_lens.paper")
    content = json.loads(package.joinpath("presets.json").read_text(encoding="utf-8"))
    return {name: Preset.from_json(name, one, content["systems"]) for name, one in content["presets"].items()}
