"""What it costs to read several sites, as ratios within one run: one capture of all, and one capture for each.

    python timings/sites.py [--data ../shared/data/halueval/qa_data.jsonl] [--sites mlp_out attn_out z] [--rounds 5]

A random Llama captures HaluEval's demonstrations. Three ways take turns: one `sl.capture` with a list of sites, one
`sl.capture` after the other, and one of the first site alone. Printed are medians and quartiles of the ratios of their
processor times, and whether the two captures of each site are one to the last bit. With --model a model of one's own is
read in place of the random one.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from capture import DATA, compare, quartiles, random_model, texts_of
from transformers.utils.logging import disable_progress_bar

import sea_lens as sl


def by_itself(model: Any, demonstrations: sl.Demonstrations, sites: list[str]) -> dict[str, sl.CrossCovariance]:
    """A capture for each site."""
    return {site: sl.capture(model, demonstrations, site=site, progress=False) for site in sites}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="HaluEval's qa_data.json")
    parser.add_argument("--sites", nargs="+", default=["mlp_out", "attn_out", "z"], choices=sl.SITES)
    parser.add_argument("--model", help="Hugging Face name or folder, in place of random weights")
    parser.add_argument("--backend", default="auto", help="auto (hooked where there is one), hooked or bridge")
    parser.add_argument("--layers", type=int, default=8, help="of the random model")
    parser.add_argument("--width", type=int, default=512, help="of the random model")
    parser.add_argument("--limit", type=int, default=48, help="demonstrations")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    every = sl.Demonstrations.from_halueval(arguments.data)
    if arguments.model is None:
        model = random_model(arguments.backend, texts_of(every), arguments.layers, arguments.width)
    else:
        model = sl.load_model(arguments.model, arguments.backend, device="cpu", dtype="float32")
    demonstrations, sites = sl.Demonstrations(every[: arguments.limit]), list(dict.fromkeys(arguments.sites))
    together = partial(sl.capture, model, demonstrations, site=sites, progress=False)
    ways = [
        together,
        partial(by_itself, model, demonstrations, sites),
        partial(by_itself, model, demonstrations, sites[:1]),
    ]
    of_all, alone = ways[0](), ways[1]()
    equal = all(
        torch.equal(a, b)
        for site in sites
        for layer in of_all[site].layers
        for a, b in zip(of_all[site].omega(layer), alone[site].omega(layer), strict=True)
    )
    several, one_by_one, single = compare(ways, arguments.rounds)
    print(
        f"{type(model).__name__}, {model.cfg.n_layers} layers, width {model.cfg.d_model}, {len(demonstrations)} "
        f"demonstrations, {len(sites)} sites ({', '.join(sites)}), {arguments.rounds} rounds"
    )
    print(f"    one call for all sites             {statistics.median(several):.2f} s")
    print(f"    a call for each / one for all      {quartiles(one_by_one, several)}")
    print(f"    one for all / one for {sites[0]:<12} {quartiles(several, single)}")
    print(f"    equal to the last bit              {'yes' if equal else 'no'}")


if __name__ == "__main__":
    main()
