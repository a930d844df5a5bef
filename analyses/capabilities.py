"""What else does the edit change? (Table 4 of the paper).

    python analyses/capabilities.py [--model M --data DIR]

The edits of both behaviours on every other benchmark of the data folder: multiple choice (HellaSwag, MMLU, MathQA, ARC,
PIQA, COPA and others as `capability/*.jsonl`), GSM8K, and texts, whose loss and divergence are measured.
"""

import pandas as pd

import sea_lens as sl
from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.subject import Subject
from sea_lens.paper.words import sentence
from sea_lens.plots.findings import changes

# What the paper has, by the name that a file of it should have.
OF_PAPER = ("hellaswag", "natural_questions", "gsm8k", "mathqa", "mmlu", "toxigen")
# Scores that sentences are made of, and of these those that are shares of right answers.
RIGHT = ("accuracy", "exact_match")
SHOWN = (*RIGHT, "bits_per_byte", "kl")


def run(subject: Subject) -> Finding:
    """Evaluate everything under every edit."""
    try:
        tasks, wrong = subject.other_tasks()
    except sl.FileError as error:
        return Finding(pd.DataFrame(), "There is nothing else to measure on.", not_run=(str(error),))
    there = {name.lower().replace(" ", "_") for name in tasks}
    not_run = [f"{name}: no file capability/{name}.jsonl" for name in OF_PAPER if name not in there]
    not_run += [*wrong, *subject.reasons()]
    tables, figures = [], {}
    for behaviour in subject.behaviours():
        fitted, where = subject.fitted(behaviour), subject.where(behaviour)
        controls = fitted.shuffled(subject.draws)
        for name, task in tasks.items():
            rows = subject.changes(task, fitted.edit, controls, **where)
            tables.append(rows.assign(behaviour=f"{behaviour} edit", name=name))
    table = pd.concat(tables) if tables else pd.DataFrame(columns=["score", "behaviour", "name"])
    told = []
    for behaviour, rows in table.groupby("behaviour", sort=False):
        main = rows.query("score in @SHOWN")
        choices = main.query("score in @RIGHT")
        if len(choices):
            named = choices.assign(score="accuracy")
            figures[str(behaviour).split()[0]] = changes(
                named, list(named["name"]), f"Other capabilities under the {behaviour}", "accuracy"
            )
        told.append(f"{str(behaviour).capitalize()}.")
        told += [sentence(row["name"], row) for row in main.to_dict("records")]
    return Finding(table, "\n".join(told), figures, not_run=tuple(not_run))


if __name__ == "__main__":
    command(run, __doc__)
