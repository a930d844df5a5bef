"""What it costs to read several sites, as ratios within one run: one capture of all, and one capture for each.

    python timings/sites.py [--data ../shared/data/halueval/qa_data.jsonl] [--sites mlp_out attn_out z] [--rounds 5]

A random Llama captures HaluEval's demonstrations. Three ways take turns: one `sl.capture` with a list of sites, one
`sl.capture` after the other, and one of the first site alone. Printed are ratios of their processor times, and how far
the cross-covariances of the first two are apart.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import DATA, Table, random_llama, take_turns
from transformers.utils.logging import disable_progress_bar

import sea_lens as sl


def one_by_one(model: Any, demonstrations: sl.Demonstrations, sites: list[str]) -> dict[str, sl.CrossCovariance]:
    """A capture for each site."""
    return {site: sl.capture(model, demonstrations, site=site, progress=False) for site in sites}


def random_model(demonstrations: sl.Demonstrations, backend: str, layers: int, width: int) -> Any:
    """A Llama with random weights that knows the demonstrations' words."""
    texts = [text for one in demonstrations for text in (one.neutral, one.positive, one.negative)]
    with tempfile.TemporaryDirectory() as folder:
        random_llama(folder, texts, layers, width, 8)
        return sl.load_model(folder, backend, device="cpu", dtype="float32")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=DATA / "halueval" / "qa_data.jsonl", help="HaluEval's qa_data.json"
    )
    parser.add_argument("--sites", nargs="+", default=["mlp_out", "attn_out", "z"], choices=sl.SITES)
    parser.add_argument("--backend", default="auto", help="auto (hooked where there is one), hooked or bridge")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--limit", type=int, default=48, help="demonstrations")
    parser.add_argument("--rounds", type=int, default=5)
    Table.add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    every, sites = sl.Demonstrations.from_halueval(arguments.data), list(dict.fromkeys(arguments.sites))
    model = random_model(every, arguments.backend, arguments.layers, arguments.width)
    demonstrations = sl.Demonstrations(every[: arguments.limit])
    together = partial(sl.capture, model, demonstrations, site=sites, progress=False)
    for_each = partial(one_by_one, model, demonstrations, sites)
    first = partial(one_by_one, model, demonstrations, sites[:1])
    of_all, alone = together(), for_each()
    apart = max(
        float((of_all[site].at(layer).omega(side, centre=False) - of_layer).abs().max())
        for site in sites
        for layer in of_all[site].layers
        for side, of_layer in enumerate(alone[site].omega(layer))
    )
    times = take_turns([together, for_each, first], arguments.rounds)
    what = f"{type(model).__name__}, {arguments.layers} layers, width {arguments.width}"
    print(f"{what}, {len(demonstrations)} demonstrations, sites {', '.join(sites)}, {arguments.rounds} rounds")
    table = Table(arguments.json)
    table.ratio("a capture for each site over one for all", times[1], times[0])
    table.ratio(f"a capture for all sites over one for {sites[0]}", times[0], times[2])
    table.number("largest difference of their cross-covariances", apart, "at most 0")


if __name__ == "__main__":
    main()
