"""What sharing prompts saves: answers to TruthfulQA's multiple choice behind its six examples.

    python timings/scoring.py [--model M --data mc_task.json --limit 20]

Every answer is scored twice in one run: by `sea_lens.measure.shared_prompts`, which reads the examples once and every
question once, and by one forward pass for each (prompt, answer). Printed are the ratio of the times and the largest
difference between the log-probabilities. Without --model and --data, the shipped model answers questions of its world.
"""

import argparse
import json
import time
from pathlib import Path

import torch

import sea_lens as sl
from sea_lens.measure.shared_prompts import log_probs
from sea_lens.measure.spans import Span, completion_spans
from sea_lens.models.lens import Lens
from sea_lens.texts.prompts import PromptTemplate


def main() -> None:
    """Score both ways, print the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=None, help="Hugging Face name or folder; the shipped model by default")
    parser.add_argument("--data", type=Path, default=None, help="TruthfulQA's mc_task.json")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--limit", type=int, default=20, help="questions")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if (arguments.model is None) != (arguments.data is None):
        parser.error("--model and --data belong together")
    if arguments.model is None:
        lens, prompts = _shipped(arguments.backend, arguments.limit)
    else:
        lens = Lens.of(sl.load_model(arguments.model, arguments.backend))
        template = PromptTemplate.of("truthfulqa")
        rows = json.loads(arguments.data.read_text(encoding="utf-8"))[: arguments.limit]
        prompts = [
            (template.render({"question": row["question"]}), [template.complete(one) for one in row["mc2_targets"]])
            for row in rows
        ]
    spans, items = [], []
    for item, (prompt, answers) in enumerate(prompts):
        for fitted in completion_spans(lens, prompt, answers):
            spans += fitted.spans
            items += [item] * len(fitted.spans)
    mean = sum(len(span.tokens) for span in spans) / len(spans)
    print(f"{len(prompts)} questions, {len(spans)} answers, {mean:.0f} tokens each with their prompt")

    one_by_one(lens, spans[:4])  # Warm.
    start = time.perf_counter()
    shared = log_probs(lens, spans, items, batch_size=arguments.batch_size)
    middle = time.perf_counter()
    expected = one_by_one(lens, spans)
    end = time.perf_counter()
    ratio = (end - middle) / (middle - start)
    print(f"shared {middle - start:.2f} s, one forward each {end - middle:.2f} s: {ratio:.1f} times faster")
    print(f"largest difference {(shared - expected).abs().max():.1e} nats of {expected.abs().mean():.0f} on average")


def one_by_one(lens: Lens, spans: list[Span]) -> torch.Tensor:
    """The same log-probabilities from one forward pass for each answer."""
    found = []
    for span in spans:
        tokens = torch.tensor([span.tokens[:-1]])
        with torch.no_grad():
            scores = lens.forward(tokens, torch.ones_like(tokens))[0, span.start - 1 :].float().log_softmax(-1)
        wanted = torch.tensor(span.tokens[span.start :], device=scores.device)
        found.append(scores.gather(1, wanted[:, None]).double().sum().cpu())
    return torch.stack(found)


def _shipped(backend: str, limit: int) -> tuple[Lens, list[tuple[str, list[str]]]]:
    """Questions of the shipped model's world behind four answered ones, every name an answer."""
    bed = sl.testbed.load(backend)
    questions = bed.world.split("train")
    examples = " ".join(f"{question.prompt()} {question.truth} ." for question in questions[:4])
    names = sorted({question.truth for question in questions})
    return Lens.of(bed.model), [
        (f"{examples} {question.prompt()}", [f" {name} ." for name in names])
        for question in bed.world.split("dev")[:limit]
    ]


if __name__ == "__main__":
    main()
