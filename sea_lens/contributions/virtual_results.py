"""Which heads write and read the directions of an edit, by weights alone: the result (docs/method.md 8.7)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Float

from .._support.arguments import as_integer, as_several, counted
from .._support.significance import upper_p_values
from ..errors import InputError
from ..models.head_weights import READ, WAYS, WRITE
from ..spectral.direction_terms import Direction, Label

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Entry: TypeAlias = tuple[Label, int, int, str]
"""(direction, to_layer, head, way): "write" of a head in front of the edit, "q", "k" or "v" of one behind it."""


@dataclass(frozen=True, eq=False)
class VirtualWeights:
    """How strongly heads write and read an edit's net directions, by weights alone (docs/method.md 8.7).

    Random directions are isotropic, and neither weights nor activations are: directions of any fit stand out among
    them. Control edits are what an edit has to be compared with.

    Attributes:
        entries: one label for each number: (direction, to_layer, head, way). The direction is labelled as in
            `DirectionContributions`; the way is "write" for a head that writes along it into the stream in front of the
            edit, and "q", "k" or "v" for one behind the edit that reads it by queries, keys or values.
        strengths: of each entry, for a stream whose root mean square is 1.
        ratios: to the root mean square over all directions: 1 is a direction like any other.
        p_values: share of random directions whose ratio is at least as large, the direction itself counted in.
        corrected_p_values: the same by the largest ratio of all heads that write, or of all heads and ways that read;
            for each direction by itself, and not for how many directions there are.
        control_ratios: the ratios of the direction in the same place of each control edit, None where there is none.
        eigenvalues, dimensions: of each direction; a strength along several is the root mean square over them.
        left_out: by (layer, way), why a layer has no entries of a way.
        draws: how many random directions there are.
    """

    entries: tuple[Entry, ...]
    strengths: Float[np.ndarray, " entries"]
    ratios: Float[np.ndarray, " entries"]
    p_values: Float[np.ndarray, " entries"]
    corrected_p_values: Float[np.ndarray, " entries"]
    draws: int
    control_ratios: Float[np.ndarray, "controls entries"] | None = None
    eigenvalues: dict[Label, float] = field(default_factory=dict)
    dimensions: dict[Label, int] = field(default_factory=dict)
    left_out: dict[tuple[int, str], str] = field(default_factory=dict)

    @property
    def n_controls(self) -> int:
        """How many control edits stand beside it."""
        return 0 if self.control_ratios is None else len(self.control_ratios)

    @property
    def directions(self) -> tuple[Label, ...]:
        """The directions, that of the largest eigenvalue first."""
        return tuple(self.eigenvalues)

    def control_p_values(self, *, corrected: bool = False) -> Float[np.ndarray, " entries"]:
        """(1 + controls whose ratio is at least as large) / (1 + controls), for each entry.

        Args:
            corrected: by the largest ratio of all entries that write, or of all that read, in each control.

        Raises:
            InputError: there are no control edits.
        """
        if self.control_ratios is None:
            raise InputError("p-values among control edits need control=, such as sl.permuted gives")
        controls = self.control_ratios
        if corrected:
            controls = controls.copy()
            for some in self._kinds():
                controls[:, some] = controls[:, some].max(1, initial=0.0, keepdims=True)
        return upper_p_values(self.ratios, controls)

    def _kinds(self) -> list[np.ndarray]:
        writes = np.array([way == WRITE for *_, way in self.entries], dtype=bool)
        return [writes, ~writes]

    def top(self, k: int = 5, way: str | Sequence[str] | None = None) -> list[tuple[Entry, float]]:
        """The k entries of largest ratio, as (entry, ratio).

        Args:
            k: how many.
            way: one of "write", "q", "k" and "v", or several; all by default.

        Raises:
            InputError: an unknown way, or what is none.
        """
        k = as_integer(k, "k", least=0)
        ways = list(WAYS) if way is None else as_several(way, "way", str)
        if unknown := [one for one in ways if one not in WAYS]:
            raise InputError(f"unknown way {unknown[0]!r}: expected one of {', '.join(WAYS)}")
        return [(self.entries[i], float(self.ratios[i])) for i in self._order(ways)[:k]]

    def _order(self, ways: Sequence[str]) -> list[int]:
        order = np.argsort(-self.ratios, kind="stable").tolist()
        return [i for i in order if self.entries[i][3] in ways]

    def to_frame(self) -> "pd.DataFrame":
        """One row for each direction, head and way.

        Columns: layer, head (missing but at site `z`), side, index, eigenvalue and dimensions of the direction, as in
        `DirectionContributions`; to_layer, to (the head that writes or reads) and way, as in `Mediation`; strength,
        ratio, p and p_corrected among random directions; with controls control_low and control_high, the range of their
        ratios, control_p and control_p_corrected.
        """
        import pandas as pd

        labels = [Direction.of(label) for label, *_ in self.entries]
        numbers: dict[str, Any] = {
            "strength": self.strengths,
            "ratio": self.ratios,
            "p": self.p_values,
            "p_corrected": self.corrected_p_values,
        }
        if self.control_ratios is not None:
            numbers["control_low"], numbers["control_high"] = self.control_ratios.min(0), self.control_ratios.max(0)
            numbers["control_p"] = self.control_p_values()
            numbers["control_p_corrected"] = self.control_p_values(corrected=True)
        return pd.DataFrame(
            {
                "layer": [one.layer for one in labels],
                "head": pd.array([one.head for one in labels], dtype="Int64"),
                "side": [one.side for one in labels],
                "index": [one.index for one in labels],
                "eigenvalue": [self.eigenvalues[label] for label, *_ in self.entries],
                "dimensions": [self.dimensions[label] for label, *_ in self.entries],
                "to_layer": [entry[1] for entry in self.entries],
                "to": [entry[2] for entry in self.entries],
                "way": [entry[3] for entry in self.entries],
                **numbers,
            }
        )

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """The largest ratios as bars, with the range of the controls behind them."""
        from ..plots.circuits import virtual_bars

        return virtual_bars(self.to_frame(), controls=self.n_controls, ax=ax)

    def __str__(self) -> str:
        told = []
        for what, ways in (("writer", (WRITE,)), ("reader", READ)):
            for i in self._order(ways)[:1]:
                label, layer, head, way = self.entries[i]
                by = "" if way == WRITE else f" by {way}"
                beside = f"p {self.corrected_p_values[i]:.2g} corrected, of {self.draws} random directions"
                if self.control_ratios is not None:
                    low, high = self.control_ratios[:, i].min(), self.control_ratios[:, i].max()
                    p = self.control_p_values(corrected=True)[i]
                    beside += f"; {self.n_controls} control edits {low:.2f} to {high:.2f}, p {p:.2g} corrected"
                name = ".".join(map(str, label))
                told.append(
                    f"the strongest {what} is head {layer}.{head}{by} along {name}, {self.ratios[i]:.2f} times a "
                    f"random direction ({beside})"
                )
        return f"VirtualWeights: of {counted(len(self.directions), 'direction')} {' and '.join(told)}"
