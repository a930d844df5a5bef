"""Where an edit acts: which layers, how strongly in each, at which positions, and how its parts are combined.

What users may write is a `LayerChoice`, a `Strength` and `Positions`, or nothing, for what the edit remembers
(`Defaults`); `Edit.check` makes a `Where` of them, once, and everything inside takes that. Ways of choosing layers:
"all", "last-2", "first-2", "signature-2", one layer, or an explicit list.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex, TypeAlias

from torch import Tensor

from .._support.arguments import Scalar, as_integer, as_strength, given
from ..errors import InputError, SeaLensWarning
from ..models.token_positions import POSITIONS, Positions, positions_name

LayerChoice: TypeAlias = str | SupportsIndex | Iterable[SupportsIndex]
Strength: TypeAlias = Scalar | Mapping[int, Scalar]


@dataclass(frozen=True)
class Where:
    """Where and how strongly an edit acts, checked: made by `Edit.check`.

    Attributes:
        strengths: α of each chosen layer, layers ascending; a finite number, or a tensor of them for single tokens.
        combine: one of the edit's `combines`.
        positions: at which tokens of a text.
    """

    strengths: Mapping[int, float | Tensor]
    combine: str
    positions: Positions = "all"

    @property
    def layers(self) -> tuple[int, ...]:
        """The chosen layers, ascending."""
        return tuple(self.strengths)

    def with_strengths(self, strengths: Mapping[int, float | Tensor]) -> "Where":
        """The same with other strengths, of some of the chosen layers; nothing is checked anew."""
        return replace(self, strengths=strengths)


@dataclass(frozen=True)
class Defaults:
    """How an edit is applied where a call does not say; None where the edit does not say either.

    Attributes:
        layers, strength, combine, positions: as in `Edit.applied`; a strength is a number, or one for each layer.
    """

    layers: LayerChoice | None = None
    strength: float | Mapping[int, float] | None = None
    combine: str | None = None
    positions: Positions | None = None

    @property
    def record(self) -> dict[str, Any]:
        """Those that are set, as JSON values.

        Raises:
            InputError: the positions are a function, which no file can hold.
        """
        if callable(self.positions):
            raise InputError(
                f"no file can hold a function, and the edit remembers {positions_name(self.positions)!r} as its "
                f"positions: expected one of {', '.join(POSITIONS)}"
            )
        found = {name: value for name, value in vars(self).items() if value is not None}
        if isinstance(self.strength, Mapping):
            found["strength"] = {str(layer): value for layer, value in self.strength.items()}
        return found

    @staticmethod
    def recorded(record: Mapping[str, Any]) -> "Defaults":
        """What a file says.

        Raises:
            ValueError, TypeError: it says something else.
        """
        values = dict(record)
        if isinstance(values.get("strength"), Mapping):
            values["strength"] = {int(layer): value for layer, value in values["strength"].items()}
        return Defaults(**values)


_COUNTED = re.compile(r"(first|last|signature)-([0-9]{1,18})")


def choose_layers(
    choice: LayerChoice, available: Iterable[int], signature: Mapping[int, float] | None = None
) -> tuple[int, ...]:
    """The chosen layers, ascending.

    Args:
        choice: "all"; "first-L" or "last-L" of those available; "signature-L", the L of highest signature
            (docs/method.md 2.5); a layer; or any iterable of layers.
        available: the layers to choose from.
        signature: signature of each available layer; None where there are none to choose by.

    Raises:
        InputError: the choice is not understood, names no layer, one that is not available or one twice, asks for more
            than there are, or needs signatures where there are none.
    """
    layers = sorted(available)
    if isinstance(choice, str):
        if choice == "all":
            return tuple(layers)
        check_layer_choice(choice)
        match = _COUNTED.fullmatch(choice)
        assert match is not None
        kind, count = match[1], int(match[2])
        if not 1 <= count <= len(layers):
            raise InputError(f"layer choice {choice!r} asks for {count} layers, expected 1 to {len(layers)}")
        if kind == "first":
            return tuple(layers[:count])
        if kind == "last":
            return tuple(layers[-count:])
        if signature is None:
            raise InputError(f"layer choice {choice!r} needs layer signatures, which only a fitted edit has")
        strongest = sorted(layers, key=lambda layer: -signature[layer])
        return tuple(sorted(strongest[:count]))
    whole = isinstance(choice, SupportsIndex) and getattr(choice, "ndim", 0) == 0
    if not whole and not isinstance(choice, Iterable):
        raise InputError(f"unknown layer choice {choice!r}: expected a text, a layer or a list of layers")
    chosen = [as_integer(layer, "layer") for layer in ([choice] if whole else choice)]  # type: ignore[union-attr]
    unknown = [layer for layer in chosen if layer not in layers]
    if unknown or not chosen:
        raise InputError(f"unknown layers {unknown}: expected some of {layers}" if unknown else "no layers chosen")
    if len(set(chosen)) != len(chosen):
        raise InputError(f"layers {chosen} name a layer twice")
    return tuple(sorted(chosen))


def check_layer_choice(choice: str) -> None:
    """Refuse a text that is no layer choice of any model.

    Raises:
        InputError: it is not.
    """
    if choice != "all" and _COUNTED.fullmatch(choice) is None:
        raise InputError(
            f"unknown layer choice {given(choice)}: expected 'all', 'first-L', 'last-L', 'signature-L' or a list "
            "of layers"
        )


def strength_of_layers(strength: Strength, layers: Iterable[int]) -> dict[int, float | Tensor]:
    """The strength of each layer.

    Raises:
        InputError: strengths are given for other layers, or one is not a finite number.
    """
    chosen = list(layers)
    if not isinstance(strength, Mapping):
        return dict.fromkeys(chosen, as_strength(strength))
    if set(strength) != set(chosen):
        raise InputError(f"strengths are given for layers {sorted(strength)}, the chosen ones are {chosen}")
    return {layer: as_strength(strength[layer]) for layer in chosen}


def warn_without_edit(**options: Any) -> None:
    """Tell of options that say how to apply an edit, where there is none: it may have been forgotten.

    They do nothing then, so that one loop runs with several edits and without any.

    Warns:
        SeaLensWarning: naming those that were given.
    """
    if given := [name for name, value in options.items() if value is not None]:
        warnings.warn(f"{', '.join(given)} without an edit: the model runs as it is", SeaLensWarning, stacklevel=3)
