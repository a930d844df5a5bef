"""How many demonstrations does it take? (the paper's figure of data efficiency).

    python analyses/data_efficiency.py [--model M --data DIR]

The edit fitted to the first N demonstrations of a fixed random order, for N from 25 on, beside fits of the same N to
shuffled demonstrations.
"""

import random

import pandas as pd

from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.subject import Subject
from sea_lens.paper.words import sentence
from sea_lens.plots.findings import along

LEAST = 25


def numbers(most: int) -> list[int]:
    """25, 50, 100, … and all."""
    found, n = [], LEAST
    while n < most:
        found.append(n)
        n *= 2
    return [*found, most]


def run(subject: Subject) -> Finding:
    """Fit to more and more demonstrations."""
    tables, told, figures = [], [], {}
    for behaviour in subject.behaviours():
        n_all = len(subject.demonstrations(behaviour))
        order = random.Random(0).sample(range(n_all), n_all)
        rows = []
        for n in numbers(n_all):
            # In the file's order, so that all of them are the whole fit.
            fitted = subject.fitted(behaviour, places=sorted(order[:n]))
            beside = fitted.shuffled(subject.draws)
            rows.append(
                subject.measured(behaviour, f"N = {n}", fitted.edit, beside, **subject.where(behaviour)).assign(n=n)
            )
        table = pd.concat(rows)
        tables.append(table)
        main = table.query("score == score.iloc[0]")
        drawn = main.assign(value=main["difference"], name=main["score"])
        title = f"Data efficiency: {behaviour}; shaded: {subject.draws} fits to shuffled demonstrations"
        figures[behaviour] = along(drawn, "n", "demonstrations", "change of the score", title, log=True)
        *fewer, many = main.to_dict("records")
        told.append(f"{behaviour.capitalize()}.")
        told += [sentence(f"With {row['n']} demonstrations", row) for row in fewer[:1]]
        told.append(sentence(f"With all {many['n']}", many))
    captions = dict.fromkeys(
        figures, "change of the score by number of demonstrations, beside fits to as many shuffled"
    )
    table = pd.concat(tables) if tables else pd.DataFrame()
    return Finding(table, "\n".join(told), figures, captions, subject.reasons())


if __name__ == "__main__":
    command(run, __doc__)
