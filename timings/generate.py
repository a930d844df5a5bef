"""Tokens per second of cached generation with an edit in every layer, as a share of those without one.

    python timings/generate.py [--backend bridge] [--prompts 1 8] [--ranks 8 64] [--new-tokens 24] [--rounds 9]

A random Llama (8 layers, width 512) continues prompts of equal length, plain and with `mlp_out` edited in all layers,
which take turns in one run; the edit is put in and taken out between the timed calls. A share is that of two calls of
one round, in processor time; its median and quartiles are printed.
"""

import argparse
import random
import statistics

import edit as edits
import torch
from transformers.utils.logging import disable_progress_bar

import sea_lens as sl

edits.LAYERS, edits.LENGTH = 8, 256
PROMPT = 24


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="auto", help="auto (hooked where there is one), hooked or bridge")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    model = edits.random_model(arguments.backend, "float32")
    print(f"{type(model).__name__}, {edits.LAYERS} layers, width {edits.WIDTH}, {arguments.rounds} rounds")
    order = random.Random(0)
    for rows in arguments.prompts:
        generator = torch.Generator().manual_seed(1)
        prompts = torch.randint(4, edits.WORDS, (rows, PROMPT), generator=generator)

        def generate(prompts: torch.Tensor = prompts) -> None:
            sl.generate(model, prompts, max_new_tokens=arguments.new_tokens, return_tokens=True)

        generate()
        for rank in arguments.ranks:
            edit = edits.random_edit(rank, "mlp_out")
            times: list[list[float]] = [[], []]
            for _ in range(arguments.rounds):
                for way in order.sample(range(2), 2):
                    with edits.installed(edit, model, "norm", 1.0) if way else edits.plain():
                        times[way].append(edits.seconds(generate))
            each = 1000 * statistics.median(times[0]) / arguments.new_tokens
            print(
                f"{rows} prompts, rank {rank}: {each:.1f} ms a step; edited {edits.quartiles(*times)} of plain's speed"
            )


if __name__ == "__main__":
    main()
