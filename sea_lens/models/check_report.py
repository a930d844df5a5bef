"""What a check of a model found: facts, each with what is expected and what to do."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedModelError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Fact:
    """One thing that was looked at.

    Attributes:
        name: what.
        measured: what was found.
        limit: what is expected, None where anything is.
        ok: whether it is.
        advice: what to do, empty where nothing has to be done.
        decisive: whether a model of which this does not hold must not be used.
    """

    name: str
    measured: Any
    limit: Any = None
    ok: bool = True
    advice: str = ""
    decisive: bool = False


@dataclass(frozen=True)
class ModelCheck:
    """What was found about a model.

    Attributes:
        facts: one for each thing that was looked at.
        deviation: largest deviation of its logits from the reference's, relative to the largest logit; None without a
            reference.
        unusable_sites: layers of each site at which a hook does not run once in a pass, or takes no effect.
        edited: whether hooks or changes of sea_lens stood in the model, so that it was not compared.
        dtypes: of the weights that were measured.
    """

    facts: tuple[Fact, ...]
    deviation: float | None = None
    unusable_sites: dict[str, list[int]] | None = None
    edited: bool = False
    dtypes: frozenset[Any] = frozenset()

    @property
    def ok(self) -> bool:
        """Whether everything is as expected."""
        return all(fact.ok for fact in self.facts)

    @property
    def record(self) -> dict[str, Any]:
        """What a saved result says of the check; JSON values."""
        return {
            "reference": None if self.deviation is None else "Hugging Face",
            # Its order of magnitude: rounding is not the same on every machine.
            "deviation": None if self.deviation is None else float(f"{self.deviation:.0e}"),
            "failed": [fact.name for fact in self.facts if not fact.ok],
        }

    def to_frame(self) -> "pd.DataFrame":
        """One row per check: name, measured, limit, ok, what to do."""
        import pandas as pd

        rows = [(fact.name, fact.measured, fact.limit, fact.ok, fact.advice) for fact in self.facts]
        return pd.DataFrame(rows, columns=["name", "measured", "limit", "ok", "what to do"])

    def refuse(self, name: str) -> None:
        """Refuse a model of which something decisive does not hold.

        Raises:
            UnsupportedModelError: naming the first such thing, what was measured and what was expected.
        """
        for fact in self.facts:
            if fact.decisive and not fact.ok:
                limit = "" if fact.limit is None else f" (expected {_shown(fact.limit)})"
                raise UnsupportedModelError(
                    f"model {name!r}: {fact.name}: {_shown(fact.measured)}{limit}; {fact.advice}"
                )

    def __str__(self) -> str:
        cells = [
            (
                "ok" if fact.ok else "NOT OK",
                fact.name,
                _shown(fact.measured),
                "" if fact.limit is None else _shown(fact.limit),
            )
            for fact in self.facts
        ]
        widths = [max(len(row[column]) for row in cells) for column in range(3)]
        lines = []
        for row, fact in zip(cells, self.facts, strict=True):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip()
            lines.append(f"{line}\n        {fact.advice}" if fact.advice and not fact.ok else line)
        return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, float) else str(value)
