"""Perplexity on plain text, and how far an edit moves the model's predictions there."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from .._support.text_rows import ending, read_text, shown
from ..errors import ActivationError, FileError
from ..measure.spans import Plan, Span, text_spans
from ..models.predictions import Predictions, predict
from ..models.token_positions import telling
from ..models.tokens import Batch, batches
from .benchmark import Asker, Benchmark, Item, Totals, ratio

if TYPE_CHECKING:
    import pandas as pd


class Perplexity(Benchmark):
    """Perplexity per token, bits per byte (comparable between tokenizers) and the KL divergence to the unedited model.

    `loss` is in nats per token. `kl` is the mean over predicted tokens of KL(unedited ‖ edited) in nats, 0 without an
    edit. Texts longer than the context are scored in parts of at most half a context, each token given at least half a
    context where there is so much (docs/method.md 6.6). Rows without text are left out, and counted in the provenance.
    """

    name: ClassVar[str] = "perplexity"
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "perplexity": (1.0, math.inf),
        **dict.fromkeys(("loss", "bits_per_byte", "kl"), (0.0, math.inf)),
    }

    def rows(self, path: str | os.PathLike[str]) -> Iterable[tuple[int, Any]]:
        # A plain text is one text, however many lines it has.
        return [(1, read_text(path))] if ending(path) == ".txt" else super().rows(path)

    def read(self, path: str, rows: Iterable[tuple[int, Any]]) -> list[Item]:
        items = []
        for number, row in rows:
            text = row.get("text") if isinstance(row, dict) else row
            if not isinstance(text, str):
                raise FileError(
                    f"{path}, row {number}: expected a text, or an object with one as 'text', got {shown(row)}"
                )
            # WikiText's files have empty lines between paragraphs: nothing is predicted there.
            if text.strip():
                items.append(Item(number, {"text": text}))
        if not items:
            raise FileError(f"{path}: every text is empty")
        return items

    def ask(self, asker: Asker, items: Sequence[Item]) -> list[dict[str, Any]]:
        plan: list[tuple[int, Span]] = []
        # In the edit's context, since examples in front take room.
        with asker.edited():
            for place, item in enumerate(items):
                what = f"row {item.row}"
                fitted = text_spans(asker.lens, item.fields["text"], prepend_bos=asker.prepend_bos, what=what)
                plan += [(place, span) for span in fitted.spans]
        losses, divergences = (torch.zeros(len(items), dtype=torch.float64) for _ in range(2))
        tokens = torch.zeros(len(items), dtype=torch.int64)
        spans = Plan.of([span for _, span in plan], apart=range(len(plan)))
        for batch in batches(spans.inputs, asker.batch_size):
            row, position, token, index = spans.entries(batch.rows)
            text = torch.tensor([plan[at][0] for at in index.tolist()])
            unedited = _predictions(asker, batch, spans) if asker.has_edit else None
            with asker.edited():
                predicted = _predictions(asker, batch, spans)
                with torch.no_grad():
                    losses.index_add_(0, text, -predicted.log_probs(row, position, token).double().cpu())
            tokens += torch.bincount(text, minlength=len(items))
            if unedited is not None:
                divergences.index_add_(0, text, unedited.divergence(predicted, row, position))
        if not torch.isfinite(losses).all():
            worst = items[int((~torch.isfinite(losses)).nonzero()[0])].row
            raise ActivationError(f"the model gives row {worst} a log-likelihood that is not finite")
        return [
            {
                "row": item.row,
                "tokens": int(tokens[place]),
                "bytes": len(item.fields["text"].encode()),
                "loss": losses[place].item(),
                "kl": divergences[place].item(),
            }
            for place, item in enumerate(items)
        ]

    def sums(self, items: "pd.DataFrame") -> dict[str, np.ndarray]:
        return {name: items[name].to_numpy(np.float64) for name in ("loss", "kl", "tokens", "bytes")}

    def score_names(self, items: Sequence[Item]) -> list[str]:
        # It reads the model's predictions itself.
        return list(self.scores(dict.fromkeys(("loss", "kl", "tokens", "bytes"), np.ones(1))))

    def scores(self, totals: Totals) -> dict[str, np.ndarray]:
        per_token = ratio(totals["loss"], totals["tokens"])
        return {
            "perplexity": np.exp(per_token),
            "loss": per_token,
            "bits_per_byte": ratio(totals["loss"], totals["bytes"]) / np.log(2),
            "kl": ratio(totals["kl"], totals["tokens"]),
        }


def _predictions(asker: Asker, batch: Batch, spans: Plan) -> Predictions:
    with torch.no_grad(), telling(asker.lens, [spans.prompts[place] for place in batch.rows]):
        return predict(asker.lens, batch.tokens, batch.mask)
