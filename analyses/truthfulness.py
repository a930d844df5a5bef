"""Is the model more truthful, and what would other methods do? (Table 1 of the paper).

    python analyses/truthfulness.py [--model M --data DIR]

MC1 and MC2 under the spectral edit of the preset and under other methods at their customary settings, with the seconds
that a fit takes and the time of the benchmark as a multiple of the unedited model's. `analyses/methods.py` has every
method at its own best and all at one divergence, and `analyses/generations.py` the shares of truthful and informative
generations. Contrastive decoding and induce-then-contrast are offered by no kept library and are not run.
"""

import statistics
import time
from collections.abc import Iterable
from typing import Any

import pandas as pd

import sea_lens as sl
from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.others import others
from sea_lens.paper.subject import Subject
from sea_lens.paper.words import beyond, sentence
from sea_lens.plots.findings import changes

# Turns that the time of an edit is measured in; shown are the median, and the range.
TIMED = 3
NOT_RUN = ("CD and ICD: no kept library offers contrastive decoding",)


def run(subject: Subject) -> Finding:
    """Measure every method once."""
    if reason := subject.missing("truth"):
        return Finding(pd.DataFrame(), "TruthfulQA cannot be looked at.", not_run=(reason, *NOT_RUN))
    task = subject.task("truth")
    not_run: list[str] = [*NOT_RUN]
    subject.evaluation(task)
    fitted = subject.fitted("truth")
    rows: list[pd.DataFrame] = []
    evaluated: list[sl.Evaluation] = []

    def timed(edit: sl.Edit | None, **where: Any) -> tuple[float, sl.Evaluation]:
        start = time.perf_counter()
        found = sl.evaluate(subject.model, task, edit=edit, **where, batch_size=subject.batch_size, progress=False)
        return time.perf_counter() - start, found

    def add(name: str, edit: sl.Edit, seconds: float, **where: Any) -> None:
        controls = fitted.shuffled(subject.draws) if edit is fitted.edit else ()
        # By turns with the unedited model, since what else a machine does changes from moment to moment.
        turns = [(timed(edit, **where), timed(None)[0]) for _ in range(TIMED)]
        ratios = sorted(seconds / unedited for (seconds, _), unedited in turns)
        evaluated.append(turns[0][0][1])
        options = {"after": evaluated[-1], "reference": ("SEA", evaluated[0])}
        measured = subject.measured("truth", name, edit, controls, **options, **where)
        times = {"times": statistics.median(ratios), "times_low": ratios[0], "times_high": ratios[-1]}
        rows.append(measured.assign(fit_seconds=seconds, **times))

    add("SEA", fitted.edit, fitted.seconds, **subject.where("truth"))
    for name, other in others(subject, "truth").items():
        start = time.perf_counter()
        try:
            edit = other.fit()
            add(name, edit, time.perf_counter() - start, **other.where)
        except sl.SeaLensError as error:
            not_run.append(f"{name}: {error}")
    # Seconds and times differ from run to run; everything else is the same every time.
    table = pd.concat(rows)
    names = list(dict.fromkeys(table["name"]))
    figures = {"methods": changes(table, names, "Truthfulness by method", "score")}
    return Finding(table, "\n".join(words(table)), figures, not_run=tuple(not_run))


def words(table: pd.DataFrame) -> Iterable[str]:
    """The spectral edit, the others by themselves and beside it, and what it costs."""
    main = table.query("score == 'mc2'").to_dict("records")
    sea, *others = main
    yield sentence("SEA", sea)
    yield from (sentence(row["name"], row) for row in others)
    yield from (beyond(row) for row in others)
    yield (
        f"The benchmark takes {sea['times']:.2f} times as long with SEA as without, in {TIMED} turns "
        f"{sea['times_low']:.2f} to {sea['times_high']:.2f}."
    )


if __name__ == "__main__":
    command(run, __doc__)
