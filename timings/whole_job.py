"""The whole job on a model of real size: time and peak memory of each step.

    python timings/whole_job.py [--shape llama-1.1b] [--dtype bfloat16] [--backend bridge] [--data ../shared/data]
    python timings/whole_job.py --shape llama-2-7b --device cuda
    python timings/whole_job.py --table docs/whole_job_*.json > docs/whole_job.md

A Llama with random weights is written, loaded, and used as a study uses one: capture of HaluEval's demonstrations, fit,
effect, path contributions of layers, direct and gradient contributions of heads, TruthfulQA's multiple choice. For each
step are printed: wall time, the most memory that the process held (and the accelerator, where there is one), forward
passes and the tokens in them, and the share of the memory bandwidth that the step reaches: bytes of weights that its
passes must read at least, over what can be copied in the time. Steps that read many tokens at once are bounded by
arithmetic and reach little of it.
"""

import argparse
import contextlib
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import DATA, Peak, machine, random_llama

import sea_lens as sl

# Of TinyLlama, Llama 2 and, for tests, of nothing.
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"layers": 2, "width": 64, "heads": 4, "inner_width": 176, "key_value_heads": 2, "vocabulary": 2000},
    "llama-1.1b": {"layers": 22, "width": 2048, "heads": 32, "inner_width": 5632, "key_value_heads": 4}
    | {"vocabulary": 32_000},
    "llama-2-7b": {"layers": 32, "width": 4096, "heads": 32, "inner_width": 11_008, "vocabulary": 32_000},
}


@dataclass(frozen=True)
class Step:
    """What one step took.

    Attributes:
        name: of the step.
        seconds: wall time.
        host, device: GiB held at most, by the process and on the accelerator.
        passes, tokens: forward passes of the model, and the tokens in them.
        bandwidth: share of the memory bandwidth that reading the weights in every pass is.
    """

    name: str
    seconds: float
    host: float
    device: float
    passes: int
    tokens: int
    bandwidth: float | None


@contextlib.contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """Tokens of each forward pass of the first block, as they come."""
    tokens: list[int] = []

    def count(module: Any, given: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = given[0] if given else next(x for x in kwargs.values() if isinstance(x, torch.Tensor))
        tokens.append(states.shape[0] * states.shape[1])

    handle = model.blocks[0].register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield tokens
    finally:
        handle.remove()


def copied_per_second(device: str) -> float:
    """Bytes that can be read in a second: half of what a large copy moves."""
    size = 2**30 if device == "cuda" else 2**28
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(8):
        start = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size / (time.perf_counter() - start))
    return best


def contrasts_of(demonstrations: sl.Demonstrations, count: int) -> sl.Contrasts:
    """The right answers against the wrong ones, behind their questions."""
    return sl.Contrasts(
        sl.Contrast(one.neutral, one.positive[len(one.neutral) :], one.negative[len(one.neutral) :])
        for one in list(demonstrations)[:count]
    )


def steps(arguments: argparse.Namespace, folder: str) -> Iterator[tuple[str, Callable[[dict[str, Any]], object]]]:
    """Each step by name; what it makes is kept under its name."""
    demonstrations = sl.Demonstrations.from_halueval(arguments.data / "halueval" / "qa_data.jsonl")
    some = sl.Demonstrations(list(demonstrations)[: arguments.demonstrations])
    contrasts = contrasts_of(demonstrations, arguments.contrasts)
    questions = arguments.data / "truthfulqa" / "mc_task.json"
    study = {"layers": "all", "batch_size": 16}
    yield (
        "load",
        lambda made: sl.load_model(
            folder, arguments.backend, device=arguments.device, dtype=arguments.dtype, check=arguments.check
        ),
    )
    yield "capture", lambda made: sl.capture(made["load"], some, progress=False)
    yield "fit", lambda made: sl.fit(made["capture"])
    yield "effect", lambda made: sl.effect(made["load"], made["fit"], contrasts, **study)
    yield "path (layers)", lambda made: sl.layer_contributions(made["load"], made["fit"], contrasts, "path", **study)
    for method in ("direct", "gradient"):
        yield (
            f"{method} (heads)",
            lambda made, method=method: sl.head_contributions(made["load"], made["fit"], contrasts, method, **study),
        )
    yield (
        "evaluate",
        lambda made: sl.evaluate(
            made["load"],
            "truthfulqa",
            questions,
            edit=made["fit"],
            limit=arguments.questions,
            progress=False,
        ),
    )
    prompts = [one.prompt for one in contrasts][:8]
    yield (
        "generate",
        lambda made: sl.generate(made["load"], prompts, made["fit"], "all", max_new_tokens=arguments.new_tokens),
    )


def measure(arguments: argparse.Namespace, folder: str) -> Iterator[Step]:
    """Each step as it ends."""
    per_second = copied_per_second(arguments.device)
    made: dict[str, Any] = {}
    weights = 0
    for name, run in steps(arguments, folder):
        context = counted(made["load"]) if "load" in made else contextlib.nullcontext([])
        with context as tokens, Peak() as peak:
            made[name] = run(made)
        if name == "load":
            weights = sum(parameter.numel() * parameter.element_size() for parameter in made["load"].parameters())
        share = len(tokens) * weights / per_second / peak.seconds if tokens else None
        yield Step(name, peak.seconds, peak.host, peak.device, len(tokens), sum(tokens), share)
        if name == "fit":
            del made["capture"]


def line(step: Step) -> str:
    """A row of the Markdown table."""
    share = "" if step.bandwidth is None else f"{step.bandwidth:.2f}"
    numbers = f"{step.seconds:.1f} | {step.host:.2f} | {step.device:.2f} | {step.passes} | {step.tokens:,}"
    return f"| {step.name} | {numbers} | {share} |"


HEAD = (
    "| step | seconds | peak, GiB | on the accelerator, GiB | passes | tokens | share of the bandwidth |\n"
    "|---|---|---|---|---|---|---|"
)


def page(runs: Sequence[Mapping[str, Any]]) -> str:
    """What runs wrote, as the page of the documentation."""
    lines = [
        "<!-- written by timings/whole_job.py --table -->",
        "# The whole job on models of real size",
        "",
        "Llamas with random weights of the shapes named; 100 demonstrations of HaluEval are captured at `mlp_out` in",
        "all layers, the edit acts in all layers, effects and contributions are those on 16 questions, TruthfulQA's",
        "multiple choice is scored on 20 questions, and 8 prompts are continued. Times are wall times of one run. The",
        "share of the bandwidth is what reading the weights once in every pass would be of what can be copied in the",
        "time: passes of many tokens are bounded by arithmetic, and on a GPU passes of few tokens by what",
        "TransformerBridge does in Python around each layer.",
        "",
    ]
    for run in runs:
        about = ", ".join(f"{key} {value}" for key, value in run["machine"].items() if value != "none")
        threads = f", {run['threads']} threads" if run.get("threads") else ""
        lines += [f"## {run['shape']}, {run['dtype']}, {run['backend']}", "", f"On: {about}{threads}.", "", HEAD]
        lines += [line(Step(**step)) for step in run["steps"]] + [""]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-1.1b")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--backend", default="bridge")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of HaluEval and TruthfulQA")
    parser.add_argument("--demonstrations", type=int, default=100)
    parser.add_argument("--contrasts", type=int, default=16)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=None, help="all cores by default")
    parser.add_argument("--no-check", dest="check", action="store_false", help="load without the model check")
    parser.add_argument("--out", type=Path, help="write the machine and the steps as JSON")
    parser.add_argument("--table", type=Path, nargs="+", help="print the page of what --out wrote")
    arguments = parser.parse_args()
    if arguments.table:
        print(page([json.loads(path.read_text(encoding="utf-8")) for path in arguments.table]), end="")
        return
    warnings.simplefilter("ignore")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    texts = [
        f"{one.positive} {one.negative}"
        for one in sl.Demonstrations.from_halueval(arguments.data / "halueval" / "qa_data.jsonl")
    ]
    with tempfile.TemporaryDirectory() as folder:
        random_llama(folder, texts, device=arguments.device, dtype=arguments.dtype, **SHAPES[arguments.shape])
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
        print(f"{arguments.shape}, {arguments.dtype}, {arguments.backend}, on {machine()}")
        print(HEAD)
        found = []
        for step in measure(arguments, folder):
            found.append(step)
            print(line(step), flush=True)
            if arguments.out:
                about = {"shape": arguments.shape, "dtype": arguments.dtype, "backend": arguments.backend}
                about["threads"] = torch.get_num_threads()
                arguments.out.write_text(
                    json.dumps({"machine": machine(), **about, "steps": [asdict(one) for one in found]}, indent=1)
                )


if __name__ == "__main__":
    main()
