"""What `sl.plan` says of each step beside the peaks that are measured.

    python timings/plan.py [--models small wide] [--backends bridge hooked] [--dtypes float32 bfloat16]
                             [--without path gradient] [--device cuda]

Random Llamas of some sizes are written; a process for each of them, backend and dtype loads it, captures, fits,
measures and generates, and prints the most memory that it held in each step (`VmHWM`, set back before the step) above
what it held before it loaded the model. By then it has done the same on the shipped model, so that what is imported or
made once does not count. The C library is told to give freed memory back at once (`ALLOCATOR`). Pages of the
weights' file that are mapped into memory are counted. Linux only. With `--device cuda` it is what torch has allocated
on the GPU at most, beside what is planned for it.
"""

import argparse
import ctypes
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import Peak

import sea_lens as sl
from sea_lens.models.load import hooked_available
from sea_lens.testbed.bed import PATH as TESTBED
from sea_lens.testbed.tokenizer import word_tokenizer

WORDS = [f"w{number}" for number in range(508)]
# Width, layers, heads, heads of keys and values, vocabulary.
MODELS = {
    "small": (768, 8, 12, 12, 32_000),
    "wide": (2048, 4, 16, 4, 8_000),
    "deep": (1024, 16, 16, 16, 32_000),
}
# What is freed goes back at once. Otherwise the C library keeps up to some hundred megabytes of it, whatever the model.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
# Some demonstrations are long, for the passes, and there are many, for the fit.
LONG, SHORT, CONTRASTS, QUESTIONS, RANK, NEW_TOKENS = 32, 568, 16, 4, 24, 16


def write_model(folder: Path, sizes: tuple[int, ...], dtype: str) -> None:
    """A Llama with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    width, layers, heads, of_keys, vocabulary = sizes
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=of_keys,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
    word_tokenizer(WORDS, 512).save_pretrained(folder)


def write_texts(folder: Path) -> None:
    """Demonstrations, contrasts and questions of random words."""
    generator = torch.Generator().manual_seed(0)

    def words(least: int, most: int) -> str:
        length = int(torch.randint(least, most + 1, (), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator).tolist())

    def demonstration(length: int) -> sl.Demonstration:
        prompt, answers = words(length, 2 * length), (length // 8 + 1, length // 4 + 1)
        return sl.Demonstration(prompt, f"{prompt} {words(*answers)}", f"{prompt} {words(*answers)} w0")

    lengths = [80] * LONG + [4] * SHORT
    sl.Demonstrations(map(demonstration, lengths)).to_jsonl(folder / "demonstrations.jsonl")
    contrasts = [sl.Contrast(words(40, 80), f" {words(2, 8)}", f" {words(2, 8)}") for _ in range(CONTRASTS)]
    sl.Contrasts(contrasts).to_jsonl(folder / "contrasts.jsonl")
    questions = []
    for _ in range(QUESTIONS):
        answers = {words(4, 12): int(place < 2) for place in range(5)}
        best = {answer: right for place, (answer, right) in enumerate(answers.items()) if place != 1}
        questions.append({"question": words(8, 24), "mc1_targets": best, "mc2_targets": answers})
    (folder / "questions.json").write_text(json.dumps(questions), encoding="utf-8")


def let_go() -> None:
    """Give back what is free: what the allocator keeps would count for the next step."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def steps(
    model: Any, demonstrations: sl.Demonstrations, contrasts: sl.Contrasts, questions: Path, folder: Path
) -> dict[str, Callable[[], Any]]:
    """Every step that is planned, by the plan's name for it."""
    prompts = [one.prompt for one in contrasts]
    made: dict[str, Any] = {}

    def kept(name: str, value: Any) -> None:
        made[name] = value

    return {
        "capture": lambda: kept("covariance", sl.capture(model, demonstrations, progress=False)),
        "fit": lambda: kept("edit", sl.fit(made.pop("covariance"), rank=RANK)),
        "capture, store": lambda: sl.capture(model, demonstrations, store=folder / "store", progress=False),
        "fit, store": lambda: sl.fit(sl.CrossCovariance.load(folder / "store"), rank=RANK),
        "effect": lambda: sl.effect(model, made["edit"], contrasts),
        "path": lambda: sl.layer_contributions(model, made["edit"], contrasts, tolerance=1e9),
        "direct": lambda: sl.head_contributions(model, made["edit"], contrasts, "direct", tolerance=1e9),
        "gradient": lambda: sl.head_contributions(model, made["edit"], contrasts, "gradient", sample=0),
        "generate": lambda: sl.generate(model, prompts, made["edit"], max_new_tokens=NEW_TOKENS),
        "evaluate": lambda: sl.evaluate(model, "truthfulqa", questions, edit=made["edit"]),
    }


def child(folder: Path, texts: Path, backend: str, dtype: str, device: str, without: list[str]) -> None:
    """Print the bytes of every step."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    questions = texts / "questions.json"
    with tempfile.TemporaryDirectory() as of_shipped:
        bed = sl.testbed.load(backend)
        demonstrations, contrasts = sl.Demonstrations(bed.demonstrations[:40]), sl.Contrasts(bed.contrasts["dev"][:4])
        warm = sl.load_model(TESTBED, backend, device, dtype)
        for step in steps(warm, demonstrations, contrasts, questions, Path(of_shipped)).values():
            step()
            del step
    del bed, warm
    let_go()
    on_gpu = device == "cuda"
    with Peak() as loading:
        idle = torch.cuda.memory_allocated() / 2**30 if on_gpu else loading.before
        model = sl.load_model(folder, backend, device, dtype)
    peaks = {"load": loading}
    # Pages of the file that nothing has read are not in memory, and no text reads all embeddings.
    for parameter in model.parameters():
        parameter.sum()
    with tempfile.TemporaryDirectory() as of_model:
        demonstrations = sl.Demonstrations.from_jsonl(texts / "demonstrations.jsonl")
        contrasts = sl.Contrasts.from_jsonl(texts / "contrasts.jsonl")
        for name, step in steps(model, demonstrations, contrasts, questions, Path(of_model)).items():
            if name in without:
                continue
            let_go()
            with Peak() as peaks[name]:
                step()
            print(name, file=sys.stderr, flush=True)
    most = {name: peak.device if on_gpu else peak.host for name, peak in peaks.items()}
    print(json.dumps({name: round((held - idle) * 2**30) for name, held in most.items()}))


def in_child(*given: Any) -> str:
    """What this script prints with other arguments."""
    asked = [sys.executable, __file__, *map(str, given)]
    environment = {**os.environ, **ALLOCATOR}
    return subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["small", "wide"], choices=MODELS)
    parser.add_argument("--backends", nargs="+", default=["bridge", "hooked"] if hooked_available() else ["bridge"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument(
        "--without", nargs="+", default=[], help="steps to leave out, such as backward passes in bfloat16"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child and given.child[0] == "make":
        write_model(Path(given.child[1]), MODELS[given.child[2]], given.child[3])
        return
    if given.child:
        child(Path(given.child[0]), Path(given.child[1]), given.child[2], given.child[3], given.device, given.without)
        return
    written_by = f"Written by `{' '.join(['python timings/plan.py', *sys.argv[1:]])}`"
    if given.device == "cuda":
        written_by += f" on one {torch.cuda.get_device_name()}"
    print(f"# What is planned beside what is measured\n\n{written_by}.", flush=True)
    passed_on = ["--device", given.device, *(["--without", *given.without] if given.without else [])]
    with tempfile.TemporaryDirectory() as texts:
        write_texts(Path(texts))
        for name, dtype in itertools.product(given.models, given.dtypes):
            with tempfile.TemporaryDirectory() as folder:
                in_child("--child", "make", folder, name, dtype)
                for backend in given.backends:
                    planned = plan_of(Path(folder), Path(texts), backend, dtype, given.device)
                    measured = json.loads(
                        in_child(*passed_on, "--child", folder, texts, backend, dtype).splitlines()[-1]
                    )
                    weights = planned["load"].parts[0].bytes / 1e6
                    print(f"\n### {name}, {dtype}, {backend}: weights of {weights:.0f} MB\n")
                    print("| step | planned, MB | measured, MB | planned / measured |\n| --- | --- | --- | --- |")
                    for step, value in measured.items():
                        expected = planned[step].memory if given.device == "cpu" else planned[step].on_device
                        print(
                            f"| {step} | {expected / 1e6:.0f} | {value / 1e6:.0f} | {expected / value:.2f} |",
                            flush=True,
                        )


def plan_of(folder: Path, texts: Path, backend: str, dtype: str, device: str) -> sl.Plan:
    """What is planned for the steps that are measured."""
    return sl.plan(
        folder,
        sl.Demonstrations.from_jsonl(texts / "demonstrations.jsonl"),
        sl.Contrasts.from_jsonl(texts / "contrasts.jsonl"),
        rank=RANK,
        backend=backend,
        dtype=dtype,
        device=device,
        max_new_tokens=NEW_TOKENS,
        benchmark="truthfulqa",
        data=texts / "questions.json",
    )


if __name__ == "__main__":
    main()
