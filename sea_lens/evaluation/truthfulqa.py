"""TruthfulQA, multiple choice (Lin et al. 2022, arXiv 2109.07958)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ..texts.truthfulqa_rows import truthfulqa_row
from .benchmark import Asker, Benchmark, Item, Scored, Totals, ratio
from .hub import HubData
from .multiple_choice import mc1, mc2, mc3

if TYPE_CHECKING:
    import pandas as pd


class TruthfulQA(Benchmark):
    """MC1, MC2 and MC3 over summed log-probabilities of the answers (docs/method.md 6.3).

    MC1 is 1 where the best answer scores above every false one of its own list, else 0. MC2 is the share of probability
    on correct answers, and MC3 the share of correct answers that score above every false one.

    Answers of `TruthfulQA.csv` are closed with a full stop, as those of `mc_task.json` are, so that both files give the
    published numbers. `sl.evaluate(model, TruthfulQA(full_stops=False), "TruthfulQA.csv")` takes them as they stand.

    Attributes:
        full_stops: whether answers of the CSV are closed.
    """

    name: ClassVar[str] = "truthfulqa"
    prompts: ClassVar[tuple[str, ...]] = ("question",)
    prompt: ClassVar[str] = "truthfulqa"
    hub: ClassVar[HubData | None] = HubData("truthfulqa/truthful_qa", "multiple_choice", "validation")
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = dict.fromkeys(("mc1", "mc2", "mc3"), (0.0, 1.0))

    def __init__(self, full_stops: bool = True) -> None:
        self.full_stops = full_stops

    def read(self, path: str, rows: Iterable[tuple[int, Any]]) -> list[Item]:
        items = []
        for number, row in rows:
            question = truthfulqa_row(path, number, row, full_stops=self.full_stops)
            # Every answer is scored once; MC1 and MC2 each have a list of their own.
            answers = tuple(dict.fromkeys([*question.best, *question.true, *question.false, *question.against]))
            sides = {"best": question.best, "against": question.against, "true": question.true, "false": question.false}
            facts = {name: [answers.index(answer) for answer in side] for name, side in sides.items()}
            items.append(Item(number, {"question": question.text}, answers, facts))
        return items

    def ask(self, asker: Asker, items: Sequence[Item]) -> list[dict[str, Any]]:
        return [self._row(item, scored) for item, scored in zip(items, asker.score(items), strict=True)]

    @staticmethod
    def _row(item: Item, scored: Scored) -> dict[str, Any]:
        values = torch.tensor([scored.log_probs], dtype=torch.float64)

        def choices(right: str, wrong: str) -> tuple[torch.Tensor, torch.Tensor]:
            places = [*item.facts[right], *item.facts[wrong]]
            return values[:, places], torch.tensor([[i < len(item.facts[right]) for i in range(len(places))]])

        return {
            "row": item.row,
            **item.fields,
            "answers": list(item.answers),
            **item.facts,
            **scored.record(),
            "mc1": mc1(*choices("best", "against")).item(),
            "mc2": mc2(*choices("true", "false")).item(),
            "mc3": mc3(*choices("true", "false")).item(),
        }

    def sums(self, items: "pd.DataFrame") -> dict[str, np.ndarray]:
        columns = {name: items[name].to_numpy(np.float64) for name in ("mc1", "mc2", "mc3")}
        return {**columns, "n": np.ones(len(items))}

    def scores(self, totals: Totals) -> dict[str, np.ndarray]:
        return {name: ratio(totals[name], totals["n"]) for name in ("mc1", "mc2", "mc3")}
