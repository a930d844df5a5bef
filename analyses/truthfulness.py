"""Is the model more truthful, and what would other methods do? (Table 1 of the paper).

    python analyses/truthfulness.py [--model M --data DIR]

MC1 and MC2 under the spectral edit of the preset and under other methods at their customary settings, with the seconds
that a fit takes and the time of the benchmark as a multiple of the unedited model's. `analyses/methods.py` has every
method at its own best and all at one divergence, and `analyses/generations.py` the shares of truthful and informative
generations. Contrastive decoding and induce-then-contrast are offered by no kept library and are not run.
"""

import time
from collections.abc import Iterable
from typing import Any

import pandas as pd

import sea_lens as sl
from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.others import others
from sea_lens.paper.subject import Subject
from sea_lens.paper.words import sentence
from sea_lens.plots.findings import changes

NOT_RUN = ("CD and ICD: no kept library offers contrastive decoding",)


def run(subject: Subject) -> Finding:
    """Measure every method once."""
    if reason := subject.missing("truth"):
        return Finding(pd.DataFrame(), "TruthfulQA cannot be looked at.", not_run=(reason, *NOT_RUN))
    task = subject.task("truth")
    not_run: list[str] = [*NOT_RUN]
    subject.evaluation(task)
    start = time.perf_counter()
    sl.evaluate(subject.model, task, batch_size=subject.batch_size, progress=False)
    unedited = time.perf_counter() - start

    fitted = subject.fitted("truth")
    rows = []

    def add(name: str, edit: sl.Edit, seconds: float, **where: Any) -> None:
        controls = fitted.shuffled(subject.draws) if edit is fitted.edit else ()
        start = time.perf_counter()
        subject.evaluation(task, edit, **where)
        times = (time.perf_counter() - start) / unedited
        rows.append(subject.measured("truth", name, edit, controls, **where).assign(fit_seconds=seconds, times=times))

    add("SEA", fitted.edit, fitted.seconds, **subject.where("truth"))
    for name, other in others(subject, "truth").items():
        start = time.perf_counter()
        try:
            edit = other.fit()
            add(name, edit, time.perf_counter() - start, **other.where)
        except sl.SeaLensError as error:
            not_run.append(f"{name}: {error}")
    # fit_seconds and times differ from run to run; everything else is the same every time.
    table = pd.concat(rows)
    names = list(dict.fromkeys(table["name"]))
    figures = {"methods": changes(table, names, "Truthfulness by method", "score")}
    return Finding(table, "\n".join(words(table)), figures, not_run=tuple(not_run))


def words(table: pd.DataFrame) -> Iterable[str]:
    """The spectral edit, and those that do more."""
    main = table.query("score == 'mc2'").to_dict("records")
    sea, *others = main
    yield sentence("SEA", sea)
    yield from (sentence(row["name"], row) for row in others)
    ahead = [row["name"] for row in others if row["difference"] > sea["difference"]]
    yield f"Of {len(others)} other methods {len(ahead)} raise MC2 by more{': ' + ', '.join(ahead) if ahead else ''}."


if __name__ == "__main__":
    command(run, __doc__)
