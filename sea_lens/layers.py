"""Ways of choosing layers: "all", "last-2", "first-2", "signature-2", one layer, or an explicit list."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from .errors import InputError

LayerChoice: TypeAlias = str | int | Iterable[int]

_COUNTED = re.compile(r"(first|last|signature)-(\d+)")


def choose_layers(
    choice: LayerChoice, available: Iterable[int], signature: Mapping[int, float] | None = None
) -> tuple[int, ...]:
    """The chosen layers, ascending.

    Args:
        choice: "all"; "first-L" or "last-L" of those available; "signature-L", the L of highest signature (SEA.md
            section 5); a layer; or any iterable of layers.
        available: the layers to choose from.
        signature: signature of each available layer; None where there are none to choose by.

    Raises:
        InputError: the choice is not understood, names a layer that is not available, or asks for more than there are.
    """
    layers = sorted(available)
    if isinstance(choice, str):
        if choice == "all":
            return tuple(layers)
        match = _COUNTED.fullmatch(choice)
        if match is None:
            raise InputError(
                f"unknown layer choice {choice!r}: expected 'all', 'first-L', 'last-L', 'signature-L' or a list of "
                "layers"
            )
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
    chosen = [choice] if isinstance(choice, int) else list(choice)
    unknown = [layer for layer in chosen if layer not in layers]
    if unknown or not chosen:
        raise InputError(f"unknown layers {unknown}: expected some of {layers}" if unknown else "no layers chosen")
    if len(set(chosen)) != len(chosen):
        raise InputError(f"layers {chosen} name a layer twice")
    return tuple(sorted(chosen))
