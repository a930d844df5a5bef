"""What a vLLM engine costs beside a TransformerLens model, as ratios within one run.

    OMP_NUM_THREADS=1 python timings/vllm_engine.py [--data ../shared/data/halueval/qa_data.jsonl] [--limit 48]

A random Llama captures `mlp_out` in all layers of HaluEval's demonstrations, and continues their questions under an
edit of rank 16 in all layers, as a TransformerBridge and as an engine, which take turns in one process. Printed are the
speed of the engine over the other, of edited over plain continuations in the engine, and how far the captured
activations are apart. Needs the extra `vllm`, and one thread: times are those of the processor.
"""

import argparse
import importlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import DATA, Table, random_llama, take_turns

import sea_lens as sl
from sea_lens.spectral.capturing import Captured

ENGINE = {
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def measure(arguments: argparse.Namespace, demonstrations: sl.Demonstrations, model: Any, engine: Any) -> None:
    """Let the two take turns, and print."""
    edit = sl.fit(sl.capture(model, demonstrations, progress=False), rank=16)
    prompts = [one.neutral for one in demonstrations]
    size = len(demonstrations)

    def captured(one: Any) -> Callable[[], object]:
        return lambda: sl.capture(one, demonstrations, batch_size=size, progress=False)

    def continued(one: Any, edit: Any = None) -> Callable[[], object]:
        return lambda: sl.generate(one, prompts, edit, max_new_tokens=arguments.new_tokens, batch_size=size)

    ways = [
        made(one, *more) for made, *more in ((captured,), (continued,), (continued, edit)) for one in (model, engine)
    ]
    for way in ways:
        way()
    times = take_turns(ways, arguments.rounds)
    print(f"{size} demonstrations, {arguments.layers} layers, width {arguments.width}, {arguments.rounds} rounds")
    table = Table(arguments.json)
    for place, what in enumerate(("capture", "plain continuations", "edited continuations")):
        table.ratio(f"{what}, speed of the engine over TransformerLens", times[2 * place], times[2 * place + 1])
    table.ratio("edited over plain continuations in the engine, speed", times[3], times[5])
    ours, theirs = (Captured.of(one, edit, demonstrations) for one in (model, engine))
    apart = max(
        float((ours.neutral(layer) - theirs.neutral(layer)).abs().max() / ours.neutral(layer).abs().max())
        for layer in edit.layers
    )
    table.number("activations apart, relative to the largest", apart, "at most 1e-4")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA / "halueval" / "qa_data.jsonl", help="HaluEval's questions")
    parser.add_argument("--limit", type=int, default=48, help="demonstrations")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens of a continuation")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    Table.add_option(parser)
    arguments = parser.parse_args()
    os.environ |= ENGINE
    torch.set_num_threads(1)
    demonstrations = sl.Demonstrations(sl.Demonstrations.from_halueval(arguments.data)[: arguments.limit])
    texts = [text for one in demonstrations for text in (one.neutral, one.positive, one.negative)]
    with tempfile.TemporaryDirectory() as folder:
        random_llama(folder, texts, arguments.layers, arguments.width, heads=8)
        model = sl.load_model(folder, "bridge", device="cpu")
        made = importlib.import_module("vllm").LLM
        engine = made(folder, max_model_len=1024, enforce_eager=True, dtype="float32")
        # The engine reads its tokenizer when it is first asked.
        measure(arguments, demonstrations, model, engine)


if __name__ == "__main__":
    main()
