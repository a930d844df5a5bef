"""What the check of a model costs at load, as ratios within one run.

    python timings/load.py [--model M] [--backend bridge] [--rounds 5]

A model is loaded with the check and without it in turn, and the same 64 tokens are read in between. Printed are the
ratio of the two loads, and their difference in passes over the 64 tokens: medians over rounds, with quartiles. Without
--model, a random Llama of 8 layers and width 512 is made and loaded.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.testbed.tokenizer import word_tokenizer


def random_llama(folder: Path) -> Path:
    """Write a Llama of 8 layers and width 512."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"num_hidden_layers": 8, "hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8}
    config = AutoConfig.for_model("llama", vocab_size=512, max_position_embeddings=512, **sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    word_tokenizer([f"w{number}" for number in range(508)], 512).save_pretrained(folder)
    return folder


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call, and what it returned."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="Hugging Face name or folder; a random Llama by default")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("expected at least 2 rounds")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        name = arguments.model or str(random_llama(Path(folder)))
        model = sl.load_model(name, arguments.backend)
        lens = Lens.of(model)
        tokens = torch.randint(lens.d_vocab, (1, min(64, lens.n_ctx)), generator=torch.Generator().manual_seed(0))
        ratios, passes = [], []
        for _ in range(arguments.rounds):
            with torch.no_grad():
                one, _ = seconds(lambda: [lens.forward(tokens, torch.ones_like(tokens)) for _ in range(5)])
            unchecked, _ = seconds(lambda: sl.load_model(name, arguments.backend, check=False))
            checked, _ = seconds(lambda: sl.load_model(name, arguments.backend))
            ratios.append(checked / unchecked)
            passes.append((checked - unchecked) / (one / 5))
    print(f"{lens.name}, {lens.backend}, {lens.n_layers} layers, width {lens.d_model}, {arguments.rounds} rounds")
    for what, values in (("load with the check / without it", ratios), ("the check, in passes over 64 tokens", passes)):
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{what:38}{middle:6.2f} [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    main()
