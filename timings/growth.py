"""How time and memory grow with the width, the demonstrations, the layers and the vocabulary, as exponents.

    python timings/growth.py [--rounds 3]

Each size is doubled three times with the others held, and the exponent is the slope of a straight line through the
logarithms: 1 is in proportion, 2 is with the square. Times are of the processor, of one thread, medians over rounds in
which the sizes take turns; memory is the peak of a process above what it held before, and what the analysis holds at
its smallest size is small against it. Fit is `sl.fit` of statistics that are at hand (scales of the activations along
random axes fall as 1 / j), capture reads texts of one length on a random Llama, scoring is the unembedding alone.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from fit import activations
from measuring import Peak, Table, random_llama, take_turns

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.models.predictions import predict

# What is held while another size grows, and where the others end.
FIT = {"d": (512, 1024, 2048, 4096), "N": (250, 500, 1000, 2000), "layers": (1, 2, 4, 8)}
HELD = {"d": 1024, "N": 500, "layers": 1}
READ = {"width": (128, 256, 512, 1024), "demonstrations": (16, 32, 64, 128), "layers": (2, 4, 8, 16)}
HELD_READ = {"width": 256, "demonstrations": 32, "layers": 4}
VOCABULARIES = (8_000, 16_000, 32_000, 64_000)


def fitting(d: int, N: int, layers: int) -> Callable[[], object]:  # noqa: N803
    """A fit of this size."""
    three = [x[:, None].expand(-1, layers, -1) for x in activations(N, d, 1.0)]
    return partial(sl.fit_activations, *three)


def capturing(width: int, demonstrations: int, layers: int) -> Callable[[], object]:
    """A capture of this size."""
    model = _model(width, layers, 300)
    rows = sl.Demonstrations(
        sl.Demonstration(text, text + " and so on", text + " or rather not")
        for text in (f"the {i:04} question is what it is" for i in range(demonstrations))
    )
    return lambda: sl.capture(model, rows, progress=False)


def scoring(vocabulary: int) -> Callable[[], object]:
    """Log-probabilities of one token at every position of a batch, without the model's layers."""
    lens = Lens.of(_model(256, 1, vocabulary))
    tokens = torch.randint(4, 250, (8, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        predictions = predict(lens, tokens, torch.ones_like(tokens))
    row, position = (x.flatten() for x in torch.meshgrid(torch.arange(8), torch.arange(64), indexing="ij"))

    def score() -> object:
        with torch.no_grad():
            return predictions.log_probs(row, position, tokens.flatten())

    return score


def _model(width: int, layers: int, vocabulary: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        random_llama(folder, [], layers, width, 4, vocabulary=vocabulary, context=256)
        return sl.load_model(folder, "bridge", device="cpu", dtype="float32", check=False)


MAKERS: Mapping[str, Callable[..., Callable[[], object]]] = {
    "fit": fitting,
    "capture": capturing,
    "scoring": scoring,
}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def peak_of(what: str, sizes: Mapping[str, int]) -> float:
    """GiB of the peak of one call above what its process held before, in a process of its own."""
    given = [f"{name}={value}" for name, value in sizes.items()]
    done = subprocess.run([sys.executable, __file__, "--child", what, *given], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    Table.add_option(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.child:
        what, *sizes = given.child
        call = MAKERS[what](**{name: int(value) for name, value in (size.split("=") for size in sizes)})
        with Peak() as peak:
            call()
        print(peak.host - peak.before)
        return
    table = Table(given.json)
    asked = [("fit", name, values, HELD) for name, values in FIT.items()]
    asked += [("capture", name, values, HELD_READ) for name, values in READ.items()]
    asked += [("scoring", "vocabulary", VOCABULARIES, {})]
    for what, name, values, held in asked:
        sizes = [{**held, name: value} for value in values]
        times = take_turns([MAKERS[what](**one) for one in sizes], given.rounds)
        middle = [statistics.median(one) for one in times]
        note = f"{values[0]:,} to {values[-1]:,}: {middle[0]:.2f} to {middle[-1]:.2f} s"
        table.number(f"growth of {what}'s time with {name}: exponent", exponent(values, middle), note=note)
        if what != "capture":
            peaks = [peak_of(what, one) for one in sizes]
            if all(peak > 0 for peak in peaks):
                note = f"{values[0]:,} to {values[-1]:,}: {1024 * peaks[0]:.0f} to {1024 * peaks[-1]:.0f} MB"
                table.number(f"growth of {what}'s memory with {name}: exponent", exponent(values, peaks), note=note)


if __name__ == "__main__":
    main()
