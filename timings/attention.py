"""What fused attention gains on a bridge, as ratios within one run.

    python timings/attention.py [--lengths 64,256,1024] [--dtype bfloat16] [--rounds 5]

A random Llama of 4 layers and width 512 is loaded with attention="eager" and with "sdpa", and reads the same texts with
both in turn, about a thousand tokens at a time, padded on the right. Printed is the time of "sdpa" over that of
"eager", a median over rounds with quartiles, and how far the logits are apart, of the largest.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.testbed.tokenizer import word_tokenizer


def random_llama(folder: Path, n_ctx: int) -> Path:
    """Write a Llama of 4 layers and width 512."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"num_hidden_layers": 4, "hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8}
    config = AutoConfig.for_model("llama", vocab_size=512, max_position_embeddings=n_ctx, **sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    word_tokenizer([f"w{number}" for number in range(508)], n_ctx).save_pretrained(folder)
    return folder


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", default="64,256,1024", help="tokens of the longest text of a batch")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("expected at least 2 rounds")
    lengths = [int(length) for length in arguments.lengths.split(",")]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = random_llama(Path(name), max(lengths))
        ways = {
            way: Lens.of(sl.load_model(folder, "bridge", dtype=arguments.dtype, attention=way))
            for way in ("eager", "sdpa")
        }
        print(f"{'tokens':>8}{'texts':>8}{'sdpa / eager':>28}{'logits apart':>16}")
        for length in lengths:
            texts = max(1, 1024 // length)
            tokens = torch.randint(512, (texts, length), generator=torch.Generator().manual_seed(0))
            mask = torch.ones_like(tokens)
            mask[-1, length // 2 :] = 0
            ratios, apart = [], 0.0
            for _ in range(arguments.rounds):
                seconds, logits = {}, {}
                for way, lens in ways.items():
                    start = time.perf_counter()
                    with torch.no_grad():
                        logits[way] = lens.forward(tokens, mask)[mask.bool()].float()
                    seconds[way] = time.perf_counter() - start
                ratios.append(seconds["sdpa"] / seconds["eager"])
                apart = float((logits["sdpa"] - logits["eager"]).abs().max() / logits["eager"].abs().max())
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(f"{length:8}{texts:8}{f'{middle:.2f} [{low:.2f}, {high:.2f}]':>28}{apart:16.0e}")


if __name__ == "__main__":
    main()
