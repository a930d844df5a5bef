"""What an evaluation found, and how two of them compare."""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .._support.arguments import given
from .._support.json_files import plain, read_sealed_json, write_sealed_json
from .._support.significance import corrected_p_values, rank_p_values
from .._support.statistics import Interval
from .._support.storage import ImpossibleError, as_file_errors
from ..errors import FileError, InputError, MismatchError, SeaLensError
from .benchmark import Benchmark
from .registry import BENCHMARKS
from .score_intervals import difference_interval, score_interval, score_items

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_KIND = "evaluation"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A benchmark's scores for one model, with the items that they come from.

    Attributes:
        benchmark: what was asked.
        items: one row of results for each item of the file, in its order.
        provenance: model, data, prompt, edit and options: what one needs to do it again.
        seed: of the bootstrap.
    """

    benchmark: Benchmark
    items: list[dict[str, Any]]
    provenance: Mapping[str, Any]
    seed: int = 0
    _sums: dict[str, np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        import pandas as pd

        try:
            _check_items(self.items)
            sums = self.benchmark.sums(pd.DataFrame(self.items))
            for name, column in sums.items():
                if np.shape(column) != (len(self.items),) or not np.isfinite(column).all():
                    raise ValueError(f"the sum {name!r} is not one number for each item")
        except SeaLensError:
            raise
        except Exception as error:  # a benchmark of somebody else's, on rows of somebody else's
            raise ImpossibleError(f"these are no results of {self.benchmark.name!r}: {error!r}"[:500]) from error
        object.__setattr__(self, "_sums", sums)

    @property
    def scores(self) -> dict[str, float]:
        """Every score, by name; a score of a group is "score/group". NaN where it is a quotient of nothing."""
        totals = {name: column.sum(keepdims=True) for name, column in self._sums.items()}
        return {name: float(value[0]) for name, value in self.benchmark.scores(totals).items()}

    @property
    def intervals(self) -> dict[str, Interval]:
        """Interval of every score, over the items that it is of (docs/method.md 6.7)."""
        found = score_items(self.benchmark, self._sums)
        return {name: score_interval(self.benchmark, name, items, self.seed) for name, items in found.items()}

    def to_frame(self) -> "pd.DataFrame":
        """One row per item."""
        import pandas as pd

        return pd.DataFrame(self.items).set_index("row")

    def table(self) -> "pd.DataFrame":
        """One row per score: score, low, high (95 % interval over items), n (its items), interval (how it was made)."""
        import pandas as pd

        rows = {name: (one.mean, one.low, one.high, one.n, one.method) for name, one in self.intervals.items()}
        columns = ["score", "low", "high", "n", "interval"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("name")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON, whole or not at all, with a digest of its content.

        Raises:
            FileError: the file cannot be written.
        """
        content = {
            "sea_lens": _KIND,
            "benchmark": self.benchmark.name,
            "scores": self.scores,
            "intervals": self.intervals,
            "provenance": self.provenance,
            "seed": self.seed,
            "items": self.items,
        }
        write_sealed_json(path, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str], benchmark: Benchmark | None = None) -> "Evaluation":
        """Read what `save` wrote; scores are computed anew from the items, and must be those of the file.

        Args:
            path: the file.
            benchmark: what was asked, where it is a `Benchmark` of one's own.

        Raises:
            FileError: another file, one that was changed since it was written, scores that its items contradict, or
                results of another benchmark.
        """
        content = read_sealed_json(path, _KIND)
        with as_file_errors(path):
            name = content["benchmark"]
            if benchmark is None and name in BENCHMARKS:
                benchmark = BENCHMARKS[name]()
            if benchmark is None or benchmark.name != name:
                raise FileError(f"{path} holds results of the benchmark {name!r}: expected it as `benchmark`")
            seed, provenance = content["seed"], content["provenance"]
            rows = [item["row"] for item in content["items"]]
            if not all(type(row) is int and 0 < row < 2**53 for row in rows) or len(set(rows)) < len(rows):
                raise ValueError("expected a number of its own, above 0, as 'row' of each item")
            if type(seed) is not int or not 0 <= seed < 2**63 or not isinstance(provenance, dict):
                raise ValueError("its seed or its provenance is none")
            loaded = cls(benchmark, content["items"], provenance, seed)
            if not _agree(content["scores"], plain(loaded.scores)):
                raise ValueError("its scores are not those of its items")
        return loaded

    def __str__(self) -> str:
        overall = {name: interval for name, interval in self.intervals.items() if "/" not in name}
        parts = [f"{name} {one.mean:.4g} {one.brackets('.4g')}" for name, one in overall.items()]
        return f"{self.benchmark.name}, {len(self.items)} items: " + ", ".join(parts)


def _check_items(items: Any) -> None:
    """Refuse what are no rows of results.

    Raises:
        ValueError: saying what was expected.
    """
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise ValueError("expected a list of at least one row")
    cells, names = sum(map(len, items)), {name for item in items for name in item}
    # A table has a cell for every row and name, which few rows of many names would make a huge one.
    if len(names) * len(items) > 4 * cells:
        raise ValueError("its rows have hardly any names in common")
    for item in items:
        for name in ("log_probs", "tokens"):
            values = item.get(name, [])
            if isinstance(values, list) and not all(_is_number(value) for value in values):
                raise ValueError(f"row {item.get('row')}: {name} holds what is no number")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -math.inf < value < math.inf


def _agree(stored: Any, own: Any) -> bool:
    """Whether scores of a file are those of its items, up to the rounding of sums."""
    if not isinstance(stored, dict) or stored.keys() != own.keys():
        return False
    return all(
        a == b or (_is_number(a) and _is_number(b) and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12))
        for a, b in ((stored[name], own[name]) for name in own)
    )


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two evaluations of the same items, score by score.

    Attributes:
        before, after: the evaluations.
        controls: evaluations under controls, such as random subspaces of the edit's ranks.
        intervals: paired interval of after − before for each score.
    """

    before: Evaluation
    after: Evaluation
    controls: tuple[Evaluation, ...]
    intervals: dict[str, Interval]

    def to_frame(self) -> "pd.DataFrame":
        """One row per score: before, after, difference, low, high.

        With controls also the least and the largest of their differences, control_low and control_high, and two-sided
        p-values of the difference among them, p, and corrected over all scores by the maximum statistic, p_corrected
        (docs/method.md 6.8).
        """
        import pandas as pd

        before, after = self.before.scores, self.after.scores
        rows = []
        for name, interval in self.intervals.items():
            row = {"score": name, "before": before[name], "after": after[name], "difference": interval.mean}
            row |= {"low": interval.low, "high": interval.high}
            if self.controls:
                moved = [control.scores[name] - before[name] for control in self.controls]
                row |= {"control_low": min(moved), "control_high": max(moved)}
            rows.append(row)
        frame = pd.DataFrame(rows).set_index("score")
        if self.controls:
            moved = np.array([[one.scores[name] - before[name] for name in self.intervals] for one in self.controls])
            known = np.isfinite(frame["difference"].to_numpy()) & np.isfinite(moved).all(0)
            for column, p_values in (("p", rank_p_values), ("p_corrected", corrected_p_values)):
                frame[column] = np.nan
                frame.loc[known, column] = p_values(frame["difference"].to_numpy()[known], moved[:, known])
        return frame

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Differences with their intervals."""
        from ..plots.scores import score_differences

        title = f"{self.before.benchmark.name}, {len(self.before.items)} items"
        return score_differences(self.to_frame(), title, ax=ax)

    def __str__(self) -> str:
        overall = {name: interval for name, interval in self.intervals.items() if "/" not in name}
        before, after = self.before.scores, self.after.scores
        parts = [f"{name} {before[name]:.4g} → {after[name]:.4g} ({one})" for name, one in overall.items()]
        return f"{self.before.benchmark.name}, {len(self.before.items)} items: " + ", ".join(parts)


def _check_evaluations(evaluations: Iterable[Any]) -> None:
    """Refuse what are none.

    Raises:
        InputError: naming the first.
    """
    for one in evaluations:
        if not isinstance(one, Evaluation):
            raise InputError(f"expected evaluations to compare, and a list of them as controls, got {given(one)}")


def _data_digest(evaluation: Evaluation) -> Any:
    """The digest of the items that were asked; None where the evaluation was made by hand."""
    data = evaluation.provenance.get("data") if isinstance(evaluation.provenance, Mapping) else None
    return data.get("sha256") if isinstance(data, Mapping) else None


def compare(before: Evaluation, after: Evaluation, *, controls: Iterable[Evaluation] = ()) -> Comparison:
    """Every score's difference, after − before, with a paired interval over items (docs/method.md 6.7).

    Args:
        before, after: evaluations of the same items, such as of the unedited and the edited model, or of two prompts.
        controls: further evaluations of the same items; their differences from `before` are shown beside.

    Raises:
        InputError: something else than evaluations.
        MismatchError: they are of different benchmarks, items or data.
    """
    controls = tuple(controls) if isinstance(controls, Iterable) else (controls,)
    _check_evaluations((before, after, *controls))
    for other in (after, *controls):
        if other.benchmark.name != before.benchmark.name:
            raise MismatchError(f"cannot compare {before.benchmark.name!r} with {other.benchmark.name!r}")
        if [item["row"] for item in other.items] != [item["row"] for item in before.items]:
            raise MismatchError(f"the evaluations have other items: {len(before.items)} and {len(other.items)}")
        if _data_digest(other) != _data_digest(before):
            raise MismatchError("the evaluations are of other data, so that their items are no pairs")
    first, second = (score_items(one.benchmark, one._sums) for one in (before, after))
    intervals = {
        name: difference_interval(before.benchmark, name, items, second[name], before.seed)
        for name, items in first.items()
        if name in second
    }
    return Comparison(before, after, controls, intervals)
