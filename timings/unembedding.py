"""What logits at the positions that count alone save, in time and in memory: TruthfulQA's multiple choice.

    python timings/unembedding.py [--data mc_task.json] [--limit 3] [--rounds 3] [--backend bridge]

A random Llama (4 layers, width 1,024, vocabulary 128,000, float32) answers questions behind the six examples of the
prompt, on one thread. Four ways take turns in one run:

    rows, everywhere     one row for each (prompt, answer); logits and log-probabilities at every position
    rows                 the same rows; logits where they count (`sea_lens.measure.scorer`)
    shared, whole        what prompts share is read once; a hook on the unembedding has all logits made whole
    shared               the same without the hook (`sea_lens.measure.shared_prompts`): what benchmarks do

Printed are medians of seconds with quartiles, the ratios, the largest difference of a log-probability, and the peak
memory of each way above the idle model, each in a process of its own (Linux).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import DATA, Peak, Table, random_llama

import sea_lens as sl
from sea_lens.measure.scorer import Scorer
from sea_lens.measure.shared_prompts import log_probs
from sea_lens.measure.spans import Span, completion_spans
from sea_lens.models.cache import Past
from sea_lens.models.lens import Lens
from sea_lens.texts.prompts import PromptTemplate

VOCABULARY, CONTEXT = 128_000, 1024
WAYS = ("rows, everywhere", "rows", "shared, whole", "shared")


def questions(lens: Lens, path: Path, limit: int) -> tuple[list[Span], list[int]]:
    """The answers as spans, and the question of each."""
    template = PromptTemplate.of("truthfulqa")
    spans: list[Span] = []
    items: list[int] = []
    for item, row in enumerate(json.loads(path.read_text(encoding="utf-8"))[:limit]):
        answers = [template.complete(one) for one in row["mc2_targets"]]
        for fitted in completion_spans(lens, template.render({"question": row["question"]}), answers):
            spans += fitted.spans
            items += [item] * len(fitted.spans)
    return spans, items


def everywhere(scorer: Scorer) -> torch.Tensor:
    """Log-probabilities of a scorer's rows, with logits at every position."""
    total = torch.zeros(scorer.n, dtype=torch.float64)
    with torch.no_grad():
        for batch in scorer.batches:
            scores = scorer.lens.forward(batch.tokens, batch.mask).float().log_softmax(-1)
            total.index_add_(0, batch.completion, scores[batch.row, batch.position, batch.token].double())
    return total


def ways(lens: Lens, spans: list[Span], items: list[int], batch_size: int) -> dict[str, Callable[[], torch.Tensor]]:
    """What is compared, by name."""
    scorer = Scorer.of(lens, [(list(span.tokens), span.start) for span in spans], items, batch_size)

    def shared() -> torch.Tensor:
        return log_probs(lens, spans, items, batch_size=batch_size)

    def whole() -> torch.Tensor:
        # Whoever looks at the logits sees all of them.
        handle = lens.model.unembed.register_forward_hook(lambda *_: None)
        try:
            return shared()
        finally:
            handle.remove()

    return dict(zip(WAYS, (lambda: everywhere(scorer), scorer.log_probs, whole, shared), strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA / "truthfulqa" / "mc_task.json")
    parser.add_argument("--backend", default="bridge")
    parser.add_argument("--limit", type=int, default=3, help="questions")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    Table.add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.way is not None:
        lens = Lens.of(sl.load_model(arguments.folder, arguments.backend, check=False))
        spans, items = questions(lens, arguments.data, arguments.limit)
        # What is measured once for each model is no part of it.
        Past(lens, 1).predict(torch.tensor([[0]]))
        with Peak() as peak:
            ways(lens, spans, items, arguments.batch_size)[arguments.way]()
        print(1024 * (peak.host - peak.before))
        return
    table = Table(arguments.json)
    with tempfile.TemporaryDirectory() as name:
        texts = [json.dumps(row) for row in json.loads(arguments.data.read_text(encoding="utf-8"))]
        random_llama(name, texts, 4, 1024, 16, inner_width=2816, vocabulary=VOCABULARY, context=CONTEXT)
        lens = Lens.of(sl.load_model(name, arguments.backend))
        spans, items = questions(lens, arguments.data, arguments.limit)
        mean, counted = (sum(f(span) for span in spans) / len(spans) for f in (lambda s: len(s.tokens), _counted))
        print(f"{lens.name}, {lens.backend}: {arguments.limit} questions, {len(spans)} answers, {mean:.0f} tokens each")
        print(f"with their prompt, {counted:.0f} of them counted, {arguments.rounds} rounds")
        taken, found = _times(ways(lens, spans, items, arguments.batch_size), arguments.rounds)
        peaks = {way: _peak_apart(way, name, arguments) for way in WAYS}
    print(f"{'':18}{'seconds':>8}  {'quartiles':16}{'peak, MB':>9}")
    for way in WAYS:
        low, middle, high = statistics.quantiles(taken[way], n=4)
        print(f"{way:18}{middle:8.2f}  {f'[{low:.2f}, {high:.2f}]':16}{peaks[way]:9.0f}")
    for slow, fast, times, share in (
        (WAYS[0], WAYS[1], "at least 3", "at most 0.1"),
        (WAYS[2], WAYS[3], "", ""),
        (WAYS[0], WAYS[3], "at least 3", "at most 0.1"),
    ):
        off = (found[slow] - found[fast]).abs().max()
        name = f"scoring TruthfulQA, vocabulary {VOCABULARY}"
        table.ratio(f"{name}: time of {slow} / {fast}", taken[slow], taken[fast], times, f"off by {off:.0e} nats")
        table.number(f"{name}: peak of {fast} / {slow}", peaks[fast] / peaks[slow], share)


def _counted(span: Span) -> int:
    return len(span.tokens) - span.start


def _times(functions: dict[str, Callable[[], torch.Tensor]], rounds: int) -> tuple[dict[str, list[float]], Any]:
    taken: dict[str, list[float]] = {way: [] for way in functions}
    found = {}
    for _ in range(rounds):
        for way, function in functions.items():
            start = time.perf_counter()
            found[way] = function()
            taken[way].append(time.perf_counter() - start)
    return taken, found


def _peak_apart(way: str, folder: str, arguments: argparse.Namespace) -> float:
    options = {"data": arguments.data, "backend": arguments.backend, "limit": arguments.limit, "folder": folder}
    options |= {"batch-size": arguments.batch_size, "way": way}
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, __file__, *given], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
