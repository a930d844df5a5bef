"""What an evaluation found, and how two of them compare."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from .._support.json_files import write_json
from .._support.statistics import Interval, percentiles, resampled_sums
from .._support.storage import as_file_errors
from .._support.text_rows import read_json
from ..errors import FileError, MismatchError
from .benchmark import Benchmark
from .registry import BENCHMARKS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Fewer than elsewhere: a benchmark has thousands of items and a hundred scores, each drawn anew every time.
_RESAMPLES = 2000


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

        object.__setattr__(self, "_sums", self.benchmark.sums(pd.DataFrame(self.items)))

    @property
    def scores(self) -> dict[str, float]:
        """Every score, by name; a score of a group is "score/group". NaN where it is a quotient of nothing."""
        totals = {name: column.sum(keepdims=True) for name, column in self._sums.items()}
        return {name: float(value[0]) for name, value in self.benchmark.scores(totals).items()}

    @property
    def intervals(self) -> dict[str, Interval]:
        """Bootstrap interval of every score, over items (docs/method.md 6.7)."""
        ends = {name: percentiles(draws) for name, draws in self.draws().items()}
        return {name: Interval(mean, *map(float, ends[name])) for name, mean in self.scores.items()}

    def draws(self) -> dict[str, Float[np.ndarray, " resamples"]]:
        """Every score on items drawn anew; the same draws for every evaluation of the same items."""
        columns = np.stack(list(self._sums.values()), axis=1)
        sums = resampled_sums(columns, resamples=_RESAMPLES, seed=self.seed)
        return self.benchmark.scores(dict(zip(self._sums, sums.T, strict=True)))

    def to_frame(self) -> "pd.DataFrame":
        """One row per item."""
        import pandas as pd

        return pd.DataFrame(self.items).set_index("row")

    def table(self) -> "pd.DataFrame":
        """One row per score: score, low, high (95 % bootstrap interval over items)."""
        import pandas as pd

        rows = {name: (one.mean, one.low, one.high) for name, one in self.intervals.items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["score", "low", "high"]).rename_axis("name")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON, whole or not at all."""
        content = {
            "sea_lens": "evaluation",
            "benchmark": self.benchmark.name,
            "scores": self.scores,
            "intervals": self.intervals,
            "provenance": self.provenance,
            "seed": self.seed,
            "items": self.items,
        }
        write_json(Path(path), content, sort_keys=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str], benchmark: Benchmark | None = None) -> "Evaluation":
        """Read what `save` wrote.

        Args:
            path: the file.
            benchmark: what was asked, where it is a `Benchmark` of one's own.

        Raises:
            FileError: another file, a damaged one, or results of another benchmark.
        """
        content = read_json(path)
        if not isinstance(content, dict) or content.get("sea_lens") != "evaluation":
            raise FileError(f"{path} is no evaluation that sea_lens wrote")
        with as_file_errors(path):
            name = content["benchmark"]
            if benchmark is None and name in BENCHMARKS:
                benchmark = BENCHMARKS[name]()
            if benchmark is None or benchmark.name != name:
                raise FileError(f"{path} holds results of the benchmark {name!r}: expected it as `benchmark`")
            return cls(benchmark, content["items"], content["provenance"], content["seed"])

    def __str__(self) -> str:
        overall = {name: interval for name, interval in self.intervals.items() if "/" not in name}
        parts = [f"{name} {one.mean:.4g} [{one.low:.4g}, {one.high:.4g}]" for name, one in overall.items()]
        return f"{self.benchmark.name}, {len(self.items)} items: " + ", ".join(parts)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two evaluations of the same items, score by score.

    Attributes:
        before, after: the evaluations.
        controls: evaluations under controls, such as random subspaces of the edit's ranks.
        intervals: paired bootstrap interval of after − before for each score.
    """

    before: Evaluation
    after: Evaluation
    controls: tuple[Evaluation, ...]
    intervals: dict[str, Interval]

    def to_frame(self) -> "pd.DataFrame":
        """One row per score: before, after, difference, low, high; and control_low, control_high of the differences."""
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
        return pd.DataFrame(rows).set_index("score")

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


def compare(before: Evaluation, after: Evaluation, *, controls: Sequence[Evaluation] = ()) -> Comparison:
    """Every score's difference, after − before, with a paired bootstrap interval over items (docs/method.md 6.7).

    Args:
        before, after: evaluations of the same items, such as of the unedited and the edited model, or of two prompts.
        controls: further evaluations of the same items; their differences from `before` are shown beside.

    Raises:
        MismatchError: they are of different benchmarks, items or data.
    """
    for other in (after, *controls):
        if other.benchmark.name != before.benchmark.name:
            raise MismatchError(f"cannot compare {before.benchmark.name!r} with {other.benchmark.name!r}")
        if [item["row"] for item in other.items] != [item["row"] for item in before.items]:
            raise MismatchError(f"the evaluations have other items: {len(before.items)} and {len(other.items)}")
        digests = {one.provenance.get("data", {}).get("sha256") for one in (before, other)}
        if len(digests) > 1:
            raise MismatchError("the evaluations are of other data, so that their items are no pairs")
    first, second = before.draws(), after.draws() if after.seed == before.seed else _redrawn(after, before.seed)
    intervals = {}
    scores = before.scores, after.scores
    for name in first:
        low, high = percentiles(second[name] - first[name])
        intervals[name] = Interval(scores[1][name] - scores[0][name], float(low), float(high))
    return Comparison(before, after, tuple(controls), intervals)


def _redrawn(evaluation: Evaluation, seed: int) -> dict[str, np.ndarray]:
    """Draws under another seed, so that they pair."""
    return Evaluation(evaluation.benchmark, evaluation.items, evaluation.provenance, seed).draws()
