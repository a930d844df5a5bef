"""What fused attention gains on a bridge, as ratios within one run.

    python timings/attention.py [--lengths 64,256,1024] [--dtype bfloat16] [--rounds 5]

A random Llama of 4 layers and width 512 is loaded with attention="eager" and with "sdpa", and reads the same texts with
both in turn, about a thousand tokens at a time, padded on the right. Printed is the time of "sdpa" over that of
"eager", a median over rounds with quartiles, and how far the logits are apart, of the largest.
"""

import argparse
import tempfile
import time
import warnings

import torch
from measuring import Table, random_llama

import sea_lens as sl
from sea_lens.models.lens import Lens


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", default="64,256,1024", help="tokens of the longest text of a batch")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    Table.add_option(parser)
    arguments = parser.parse_args()
    table = Table(arguments.json)
    if arguments.rounds < 2:
        parser.error("expected at least 2 rounds")
    lengths = [int(length) for length in arguments.lengths.split(",")]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        random_llama(folder, [], 4, 512, 8, vocabulary=512, context=max(lengths))
        ways = {
            way: Lens.of(sl.load_model(folder, "bridge", dtype=arguments.dtype, attention=way))
            for way in ("eager", "sdpa")
        }
        for length in lengths:
            texts = max(1, 1024 // length)
            tokens = torch.randint(512, (texts, length), generator=torch.Generator().manual_seed(0))
            mask = torch.ones_like(tokens)
            mask[-1, length // 2 :] = 0
            fused, eager, apart = [], [], 0.0
            for _ in range(arguments.rounds):
                seconds, logits = {}, {}
                for way, lens in ways.items():
                    start = time.perf_counter()
                    with torch.no_grad():
                        logits[way] = lens.forward(tokens, mask)[mask.bool()].float()
                    seconds[way] = time.perf_counter() - start
                fused.append(seconds["sdpa"])
                eager.append(seconds["eager"])
                apart = float((logits["sdpa"] - logits["eager"]).abs().max() / logits["eager"].abs().max())
            note = f"logits apart by {apart:.0e} of the largest"
            table.ratio(f"bridge, {texts} texts of {length} tokens: sdpa / eager", fused, eager, note=note)


if __name__ == "__main__":
    main()
