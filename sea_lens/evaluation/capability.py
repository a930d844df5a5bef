"""Multiple choice from any file of query, choices and gold, for checking what else an edit does."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .._support.text_rows import shown, text_field
from ..errors import FileError
from .benchmark import Asker, Benchmark, Item, Totals, ratio
from .gsm8k import GSM8K

if TYPE_CHECKING:
    import pandas as pd


class Capability(Benchmark):
    """Accuracy of the choice with the highest log-probability, summed and per character (docs/method.md 6.3).

    The second, `accuracy_normalised`, takes away most of the advantage of short choices (as `acc_norm` in EleutherAI's
    harness). Ties go to the first choice in both.
    """

    name: ClassVar[str] = "capability"
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = dict.fromkeys(("accuracy", "accuracy_normalised"), (0.0, 1.0))
    prompts: ClassVar[tuple[str, ...]] = ("query",)

    def for_rows(self, rows: Sequence[tuple[int, Any]]) -> Benchmark:
        """GSM8K where the rows are its own: its file lies among those of capability, and its rows have no choices."""
        # A subclass of another name is another benchmark, which no row turns into GSM8K.
        if self.name != Capability.name or not rows:
            return self
        _, first = rows[0]
        solved = isinstance(first, dict) and {"question", "answer"} <= first.keys() and "query" not in first
        return GSM8K() if solved else self

    def read(self, path: str, rows: Iterable[tuple[int, Any]]) -> list[Item]:
        items = []
        for number, row in rows:
            query = text_field(path, number, row, "query")
            choices, gold = row.get("choices"), row.get("gold")
            if not isinstance(choices, list) or len(choices) < 2:
                raise FileError(f"{path}, row {number}: field 'choices' must be a list of two texts or more")
            if not all(isinstance(choice, str) and choice.strip() for choice in choices):
                raise FileError(f"{path}, row {number}: field 'choices' has an empty choice or one that is no text")
            if type(gold) is not int or not 0 <= gold < len(choices):
                raise FileError(
                    f"{path}, row {number}: field 'gold' must be the number of a choice, 0 to {len(choices) - 1}, "
                    f"got {shown(gold)}"
                )
            # Choices that are wrong in the same words change nothing; published files have some.
            if choices.count(choices[gold]) > 1:
                raise FileError(
                    f"{path}, row {number}: the right choice {shown(choices[gold])} stands among 'choices' twice"
                )
            items.append(Item(number, {"query": query}, tuple(choices), {"gold": gold}))
        return items

    def default_prompt(self, items: Sequence[Item]) -> str:
        """The one with "Answer:" where every query begins with "Question:", else the one of the query alone."""
        questions = all(item.fields["query"].startswith("Question:") for item in items)
        return "query_answer" if questions else "query"

    def ask(self, asker: Asker, items: Sequence[Item]) -> list[dict[str, Any]]:
        rows = []
        for item, scored in zip(items, asker.score(items), strict=True):
            per_character = [value / len(choice) for value, choice in zip(scored.log_probs, item.answers, strict=True)]
            answer, normalised = int(np.argmax(scored.log_probs)), int(np.argmax(per_character))
            rows.append(
                {
                    "row": item.row,
                    **item.fields,
                    "choices": list(item.answers),
                    **item.facts,
                    **scored.record(),
                    "answer": answer,
                    "answer_normalised": normalised,
                    "accuracy": float(answer == item.facts["gold"]),
                    "accuracy_normalised": float(normalised == item.facts["gold"]),
                }
            )
        return rows

    def sums(self, items: "pd.DataFrame") -> dict[str, np.ndarray]:
        columns = {name: items[name].to_numpy(np.float64) for name in ("accuracy", "accuracy_normalised")}
        return {**columns, "n": np.ones(len(items))}

    def scores(self, totals: Totals) -> dict[str, np.ndarray]:
        return {name: ratio(totals[name], totals["n"]) for name in ("accuracy", "accuracy_normalised")}
