"""What a server is told of edits by environment variables, since it is started by somebody else's command."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..edits.activation import ActivationEdit
from ..edits.where import LayerChoice, Where
from ..errors import InputError
from ..methods.loading import load_edit

EDIT, LAYERS, STRENGTH, COMBINE = "SEA_LENS_EDIT", "SEA_LENS_LAYERS", "SEA_LENS_STRENGTH", "SEA_LENS_COMBINE"
# Of several edits, as in PATH.
_SEVERAL = os.pathsep


@dataclass(frozen=True)
class Served:
    """An edit, and where it acts in a server.

    Attributes:
        path: its file.
        edit: the edit.
        where: its layers, strengths and way to combine.
    """

    path: str
    edit: ActivationEdit
    where: Where

    @property
    def told(self) -> str:
        """What a log says of it."""
        strengths = sorted(set(map(str, self.where.strengths.values())))
        return (
            f"{type(self.edit).__name__} of {self.path} at {self.edit.site} of layers {list(self.where.layers)}, "
            f"strength {', '.join(strengths)}, combine {self.where.combine!r}"
        )


def served_edits(environment: Mapping[str, str]) -> list[Served]:
    """The edits that an environment names, in the order in which they act.

    `SEA_LENS_EDIT` holds one file, or several with a colon between them. `SEA_LENS_LAYERS`, `SEA_LENS_STRENGTH` and
    `SEA_LENS_COMBINE` are for all of them; of several edits each may have its own, with a semicolon between them. What
    is not given is what the edit remembers.

    Raises:
        FileError: a file that holds no edit.
        InputError: options that do not fit, or an edit that no server can have.
    """
    given = environment.get(EDIT, "")
    paths = [path for path in given.split(_SEVERAL) if path]
    if not paths:
        raise InputError(
            f"{EDIT} is {given!r}: expected the file of an edit, or several with {_SEVERAL!r} between them"
        )
    layers, strengths, combines = (_of_each(environment, name, len(paths)) for name in (LAYERS, STRENGTH, COMBINE))
    return [_served(*one) for one in zip(paths, layers, strengths, combines, strict=True)]


def _of_each(environment: Mapping[str, str], name: str, n: int) -> list[str | None]:
    given = environment.get(name, "").strip()
    parts = [part.strip() or None for part in given.split(";")]
    if len(parts) == 1:
        return parts * n
    if len(parts) != n:
        raise InputError(f"{name} is {given!r}: expected one value, or one for each of {n} edits with ';' between them")
    return parts


def _served(path: str, layers: str | None, strength: str | None, combine: str | None) -> Served:
    edit: Any = load_edit(path)
    if not isinstance(edit, ActivationEdit):
        raise InputError(
            f"{path}: {type(edit).__name__} acts on the {edit.site}, and in a server an edit acts on activations alone"
        )
    try:
        number = None if strength is None else float(strength)
    except ValueError:
        raise InputError(f"{STRENGTH} is {strength!r}: expected a number") from None
    where = edit.where(_layers(layers), number, combine)
    if where.positions != "all":
        raise InputError(
            f"{path}: the edit acts at positions {where.positions!r}, and in a server at every token: expected one "
            f"that was saved as edit.with_defaults(positions='all')"
        )
    return Served(path, edit, where)


def _layers(given: str | None) -> LayerChoice | None:
    parts = [] if given is None else [part.strip() for part in given.split(",")]
    return [int(part) for part in parts] if parts and all(part.isdecimal() for part in parts) else given
