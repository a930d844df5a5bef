"""Tokens per second of cached generation with an edit in every layer, as a share of those without one.

    python timings/generate.py [--backend bridge] [--prompts 1 8] [--ranks 8 64] [--new-tokens 24] [--rounds 9]

A random Llama (8 layers, width 512) continues prompts of equal length, plain and with `mlp_out` edited in all layers,
which take turns in one run; the edit is put in and taken out between the timed calls. A share is that of two calls of
one round, in processor time; its median and quartiles are printed.
"""

import argparse
import statistics
from contextlib import nullcontext
from functools import partial

import edit as edits
import torch
from measuring import Table, take_turns
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
    Table.add_option(parser)
    arguments = parser.parse_args()
    table = Table(arguments.json)
    torch.set_num_threads(1)
    disable_progress_bar()
    model = edits.random_model(arguments.backend, "float32")
    print(f"{type(model).__name__}, {edits.LAYERS} layers, width {edits.WIDTH}, {arguments.rounds} rounds")
    for rows in arguments.prompts:
        generator = torch.Generator().manual_seed(1)
        prompts = torch.randint(4, edits.WORDS, (rows, PROMPT), generator=generator)

        def generate(prompts: torch.Tensor = prompts) -> None:
            sl.generate(model, prompts, max_new_tokens=arguments.new_tokens, return_tokens=True)

        generate()
        for rank in arguments.ranks:
            edit = edits.random_edit(rank, "mlp_out")
            within = [nullcontext, partial(edits.installed, edit, model, "norm", 1.0)]
            unedited, edited = take_turns([generate] * 2, arguments.rounds, within)
            each = 1000 * statistics.median(unedited) / arguments.new_tokens
            name = f"generation, {rows} prompt{'s' if rows > 1 else ''}, rank {rank}, {type(model).__name__}"
            note = f"{each:.1f} ms a step without an edit"
            table.ratio(f"{name}: tokens per second, edited / plain", unedited, edited, "at least 0.95", note)


if __name__ == "__main__":
    main()
