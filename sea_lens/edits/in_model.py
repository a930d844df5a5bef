"""What stands in a model: the handle of an edit that was put in, all that does now, taking it out, and the warning."""

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import SeaLensWarning
from ..models.lens import Lens
from ..models.plain_model import PlainModel, host
from ..models.standing import Held, Standing
from ..models.token_positions import Positions, positions_name
from .where import Where


class Installation(Held):
    """An edit in a model; `remove` takes it out again, in any order with others, and may be called twice.

    As a context manager it takes the edit out on leaving. It also does when nothing holds it any more, unless it was
    kept: `install` keeps it.

    Attributes:
        edit: the edit.
        where: its layers, strengths, way to combine and positions.
    """

    def __init__(self, lens: Lens | PlainModel, edit: Any, where: Where) -> None:
        self.edit, self.where = edit, where
        super().__init__(Standing(lens.observer, about=(edit, where)))


@dataclass(frozen=True)
class Installed:
    """One edit that stands in a model, or some hooks of sea_lens's that measure.

    Attributes:
        edit: the edit; None for hooks that measure.
        layers: where it acts.
        strengths: α of each of these layers.
        combine: how its parts are combined; None for hooks that measure.
        positions: at which tokens of a text it acts.
    """

    edit: Any
    layers: tuple[int, ...]
    strengths: Mapping[int, float | Tensor]
    combine: str | None
    positions: Positions
    _standing: Standing = field(repr=False, compare=False)

    @property
    def strength(self) -> float | Tensor | Mapping[int, float | Tensor]:
        """α, as one value where all layers have the same."""
        values = list(self.strengths.values())
        plain = all(isinstance(value, float) for value in values)
        return values[0] if plain and len(set(values)) == 1 else self.strengths

    def remove(self) -> None:
        """Take it out of the model; may be called twice."""
        self._standing.remove()

    def __repr__(self) -> str:
        layers = f"layers {_ranges(self.layers)}" if self.layers else "no layer"
        if self.edit is None:
            return f"hooks that measure in {layers}"
        strengths = self.strength
        if isinstance(strengths, Mapping):
            shown = "strengths " + ", ".join(f"{layer}: {_shown(alpha)}" for layer, alpha in strengths.items())
        else:
            shown = f"strength {_shown(strengths)}"
        places = "" if self.positions == "all" else f", positions {positions_name(self.positions)!r}"
        return (
            f"{type(self.edit).__name__} at {self.edit.site!r} in {layers}, {shown}, combine {self.combine!r}{places}"
        )


def installed(model: Any) -> list[Installed]:
    """What sea_lens has put into a model and not taken out yet, in the order in which it was put in.

    Args:
        model: a TransformerLens model.

    Returns:
        An entry for each edit (and for hooks that measure, while they do); `remove` takes one out.

    Raises:
        UnsupportedModelError: it is no TransformerLens model.

    Example:
        >>> handle = sl.dola(bed.model, layers="first-2").install(bed.model)
        >>> sl.installed(bed.model)
        [DoLa at 'logits' in layers 0-1, strength 1, combine 'contrast']
        >>> handle.remove()
        >>> sl.installed(bed.model)
        []
    """
    return [_entry(standing) for standing in host(model).observer.inside()]


def remove_all(model: Any) -> list[Installed]:
    """Take everything out of a model that sea_lens put in: hooks, changed weights, prefixes, changes of logits.

    A user's own hooks stay. May be called at any time, and again.

    Args:
        model: a TransformerLens model.

    Returns:
        What was taken out, as `installed` lists it.

    Raises:
        UnsupportedModelError: it is no TransformerLens model.
    """
    found = installed(model)
    host(model).remove_all()
    return found


def warn_of_installed(model: Any, what: str) -> None:
    """Warn, in the name of whoever called sea_lens, where an edit stands in a model already.

    Args:
        model: a TransformerLens model.
        what: what is about to happen, such as "activations are captured".

    Raises:
        InputError: another thread has put an edit into the model, or another task anything.

    Warns:
        SeaLensWarning: an edit stands in the model; names it.
    """
    host(model).observer.check_user()
    if not (found := [entry for entry in installed(model) if entry.edit is not None]):
        return
    warnings.warn(
        f"{what} while the model is edited already: {'; '.join(map(repr, found))}. Both act together. If that is not "
        f"meant, take out what is in the model with the handle that `install` returned, or with sl.remove_all(model); "
        f"sl.installed(model) lists it",
        SeaLensWarning,
        stacklevel=_levels(),
    )


def asks_for_whole_rows(lens: Lens) -> bool:
    """Whether an edit stands in the model whose positions are a function of a row's tokens."""
    edits = (about for one in lens.observer.inside() if isinstance(about := getattr(one, "about", None), tuple))
    return any(isinstance(part, Where) and callable(part.positions) for about in edits for part in about)


def _entry(standing: Standing) -> Installed:
    if standing.about is None:
        layers = {layer for change in standing.changes if (layer := getattr(change, "layer", None)) is not None}
        return Installed(None, tuple(sorted(layers)), {}, None, "all", standing)
    edit, where = standing.about
    return Installed(edit, where.layers, where.strengths, where.combine, where.positions, standing)


def _levels() -> int:
    """How many frames above `warn_of_installed` the caller of sea_lens is."""
    frame, levels = sys._getframe(2), 2
    package = __name__.split(".")[0]
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in (package, "contextlib"):
        frame, levels = frame.f_back, levels + 1
    return levels


def _ranges(layers: tuple[int, ...]) -> str:
    if len(layers) > 1 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ", ".join(map(str, layers))


def _shown(alpha: float | Tensor) -> str:
    return f"tensor of shape {tuple(alpha.shape)}" if isinstance(alpha, Tensor) else f"{alpha:g}"
