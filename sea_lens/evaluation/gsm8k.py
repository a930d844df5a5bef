"""GSM8K: grade-school mathematics by greedy generation (Cobbe et al. 2021, arXiv 2110.14168)."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .._support.text_rows import text_field
from ..errors import FileError
from .benchmark import Asker, Benchmark, Item, Totals, ratio
from .hub import HubData
from .numbers import final_number

if TYPE_CHECKING:
    import pandas as pd


class GSM8K(Benchmark):
    """Share of problems whose generated solution ends in the right number (`exact_match`), or in any (`answered`).

    What counts as a number is docs/method.md 6.3.
    """

    name: ClassVar[str] = "gsm8k"
    prompts: ClassVar[tuple[str, ...]] = ("question",)
    prompt: ClassVar[str] = "worked_answer"
    scoring: ClassVar[bool] = False
    hub: ClassVar[HubData | None] = HubData("openai/gsm8k", "main", "test")
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = dict.fromkeys(("exact_match", "answered"), (0.0, 1.0))

    def read(self, path: str, rows: Iterable[tuple[int, Any]]) -> list[Item]:
        items = []
        for number, row in rows:
            question, solution = (text_field(path, number, row, name) for name in ("question", "answer"))
            gold = final_number(solution)
            if "####" not in solution or gold is None:
                raise FileError(f"{path}, row {number}: field 'answer' must end in '#### ' and a number")
            items.append(Item(number, {"question": question}, (), {"gold": format(gold, "f")}))
        return items

    def ask(self, asker: Asker, items: Sequence[Item]) -> list[dict[str, Any]]:
        rows = []
        for item, (text, cut) in zip(items, asker.generate(items), strict=True):
            answer = final_number(text)
            rows.append(
                {
                    "row": item.row,
                    **item.fields,
                    **item.facts,
                    "generated": text,
                    "cut_tokens": cut,
                    "answer": None if answer is None else format(answer, "f"),
                    "exact_match": float(answer == Decimal(item.facts["gold"])),
                }
            )
        return rows

    def sums(self, items: "pd.DataFrame") -> dict[str, np.ndarray]:
        return {
            "exact_match": items["exact_match"].to_numpy(np.float64),
            "answered": items["answer"].notna().to_numpy(np.float64),
            "n": np.ones(len(items)),
        }

    def scores(self, totals: Totals) -> dict[str, np.ndarray]:
        return {name: ratio(totals[name], totals["n"]) for name in ("exact_match", "answered")}
