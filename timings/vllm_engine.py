"""What a vLLM engine costs beside a TransformerLens model, as ratios within one run.

    python timings/vllm_engine.py [--data ../shared/data/halueval/qa_data.jsonl] [--limit 48] [--rounds 5]

A random Llama captures `mlp_out` in all layers of HaluEval's demonstrations, and continues their questions under an
edit of rank 16 in all layers, as a TransformerBridge and as an engine. The two take turns in one process, on as many
threads as OMP_NUM_THREADS says. Printed are medians and quartiles of the speed of the engine over the other, what an
edit costs in the engine, and how far the captured activations are apart. Needs the extra `vllm`.
"""

import argparse
import importlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import capture
import torch
from measuring import DATA, random_llama

import sea_lens as sl
from sea_lens.spectral.capturing import Captured


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA / "halueval" / "qa_data.jsonl", help="HaluEval's qa_data.jsonl")
    parser.add_argument("--limit", type=int, default=48, help="demonstrations")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens of a continuation")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }.items():
        os.environ.setdefault(name, value)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    demonstrations = sl.Demonstrations(sl.Demonstrations.from_halueval(arguments.data)[: arguments.limit])
    texts = capture.texts_of(demonstrations)
    with tempfile.TemporaryDirectory() as folder:
        # The engine reads its tokenizer when it is first asked.
        random_llama(folder, texts, arguments.layers, arguments.width, capture.HEADS)
        model = sl.load_model(folder, "bridge", device="cpu")
        # Float32 as the other, and longer than every text.
        engine = importlib.import_module("vllm").LLM(
            folder, max_model_len=2048, enforce_eager=True, dtype="float32", disable_log_stats=True
        )
        measure(arguments, demonstrations, model, engine)


def measure(arguments: argparse.Namespace, demonstrations: sl.Demonstrations, model: Any, engine: Any) -> None:
    """Let the two take turns, and print."""
    edit = sl.fit(sl.capture(model, demonstrations, progress=False), rank=16)
    prompts = [one.neutral for one in demonstrations]
    options: dict[str, Any] = {"max_new_tokens": arguments.new_tokens, "batch_size": len(prompts)}
    print(f"{torch.get_num_threads()} threads, {len(demonstrations)} demonstrations, {arguments.rounds} rounds")
    size = len(demonstrations)
    ways: dict[str, Callable[[], Any]] = {
        "capture, TransformerLens": lambda: sl.capture(model, demonstrations, batch_size=size, progress=False),
        "capture, engine": lambda: sl.capture(engine, demonstrations, batch_size=size, progress=False),
        "generate, TransformerLens": lambda: sl.generate(model, prompts, **options),
        "generate, engine": lambda: sl.generate(engine, prompts, **options),
        "edited, TransformerLens": lambda: sl.generate(model, prompts, edit=edit, **options),
        "edited, engine": lambda: sl.generate(engine, prompts, edit=edit, **options),
    }
    times = rounds(ways, arguments.rounds)
    for way, found in times.items():
        print(f"{way}: {statistics.median(found):.2f} s")
    for what in ("capture", "generate", "edited"):
        ratio(f"{what}, speed of the engine over TransformerLens", times, f"{what}, TransformerLens", f"{what}, engine")
    ratio("edited over plain, in the engine", times, "generate, engine", "edited, engine")
    ours, theirs = (Captured.of(one, edit, demonstrations) for one in (model, engine))
    apart = max(
        float((ours.neutral(layer) - theirs.neutral(layer)).abs().max() / ours.neutral(layer).abs().max())
        for layer in edit.layers
    )
    print(f"activations apart, relative to the largest: {apart:.1e}")


def rounds(ways: dict[str, Callable[[], Any]], number: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; a first one warms up and does not count."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for place in range(number + 1):
        for way in random.Random(place).sample(list(ways), len(ways)):
            begun = time.perf_counter()
            ways[way]()
            if place:
                found[way].append(time.perf_counter() - begun)
    return found


def ratio(what: str, times: dict[str, list[float]], above: str, below: str) -> None:
    """Print the median and the quartiles of a ratio within rounds."""
    each = sorted(one / other for one, other in zip(times[above], times[below], strict=True))
    low, middle, high = statistics.quantiles(each, n=4)
    print(f"{what}: {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
