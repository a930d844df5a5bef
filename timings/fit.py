"""A fit against the arithmetic of the authors' released code, and its peak memory from a store.

    python timings/fit.py [--sizes 2048x1000 4096x2000] [--decays 1.0 0.7 0.6 0.5 0.0] [--rounds 3] [--energy 0.998]
    python timings/fit.py --store [--layers 80] [--width 8192] [--demonstrations 2000] [--rank-of-signal 40]

The released code makes each covariance in float32, decomposes it whole, and computes its matrix rank; the fit is
`sl.fit_activations`. Both take turns on activations whose scales along random axes fall as j to the power of -decay (0
is white noise, of which nearly all directions are needed). Printed are medians of the processor times, their ratio, the
ranks, and the largest entry of the difference between the projections and those of a full decomposition in float64.

With --store, activations in bfloat16 of as many layers are written to a store, and a process of its own fits them:
printed is the most memory that it held, and what it held before.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from jaxtyping import Float
from measuring import Table, take_turns
from torch import Tensor

import sea_lens as sl
from sea_lens.spectral.store import begin_store


def activations(n: int, d: int, decay: float, seed: int = 0) -> list[Float[Tensor, "n d"]]:
    """Neutral, positive and negative activations in float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    scales = torch.arange(1, d + 1) ** -decay
    axes = torch.linalg.qr(normal(d, d)).Q
    shared = normal(n, d) * scales
    return [(shared + 0.5 * normal(n, d) * scales) @ axes.T for _ in range(3)]


def released(h: Tensor, plus: Tensor, minus: Tensor, energy: float) -> list[Tensor]:
    """The two projections as the released code computes them, without its loop over demonstrations."""
    found = []
    for other in (plus, minus):
        omega = h.T @ other / len(h)
        left, values, _ = torch.linalg.svd(omega)
        torch.linalg.matrix_rank(omega)
        found.append(left[:, : _rank(values, energy)])
    return found


def _rank(values: Tensor, energy: float) -> int:
    shares = values.square().cumsum(0) / values.square().sum()
    return int((shares >= energy).int().argmax()) + 1


def compare(table: Table, n: int, d: int, decay: float, rounds: int, energy: float) -> None:
    """One row of the table."""
    h, plus, minus = activations(n, d, decay)
    ours, theirs = take_turns(
        [
            lambda: sl.fit_activations(h[:, None], plus[:, None], minus[:, None], energy=energy),
            lambda: released(h, plus, minus, energy),
        ],
        rounds,
    )
    edit = sl.fit_activations(h[:, None], plus[:, None], minus[:, None], energy=energy)
    error, ranks = 0.0, []
    for side, other in enumerate((plus, minus)):
        full, values, _ = torch.linalg.svd(h.double().T @ other.double() / n)
        leading = full[:, : _rank(values, energy)]
        ranks.append(leading.shape[1])
        projection = edit.projections(0)[side]
        found = projection if side == 0 else torch.eye(d, dtype=torch.float64) - projection
        error = max(error, (found - leading @ leading.T).abs().max().item())
    if edit.ranks[0] != tuple(ranks):
        raise SystemExit(f"d {d}, N {n}, decay {decay}: ranks {edit.ranks[0]}, in full {tuple(ranks)}")
    name = f"fit, d {d}, N {n}, spectrum of activations falling as j^-{decay:g}, K {energy:g}, ranks {edit.ranks[0]}"
    wanted = "at least 15" if d >= 4096 else "at least 10"
    note = f"{statistics.median(ours):.2f} s; projections within {error:.0e} of those of a full decomposition"
    table.ratio(f"{name}: time of the released arithmetic / fit", theirs, ours, wanted, note)
    with tempfile.TemporaryDirectory() as folder:
        edit.save(Path(folder) / "edit.safetensors")
        size = (Path(folder) / "edit.safetensors").stat().st_size
    table.number(
        f"saved edit, d {d}, ranks {edit.ranks[0]}: bytes / two dense float32 matrices",
        size / (2 * 4 * d * d),
        "at most 0.05",
    )


def write_store(folder: Path, layers: int, d: int, n: int, rank: int) -> None:
    """Activations of `rank` strong directions and weak noise, layer by layer and shard by shard."""
    generator = torch.Generator().manual_seed(0)
    size = 32
    batches = [list(range(start, min(start + size, n))) for start in range(0, n, size)]
    store = begin_store(folder, range(layers), "mlp_out", {}, batches, (layers, 1, d))
    axes = torch.randn(rank, d, generator=generator) / d**0.5
    for number, shard in enumerate(store.shards):
        three = []
        common = torch.randn(len(shard), layers, 1, rank, generator=generator) @ axes
        for _ in range(3):
            noise = torch.randn(len(shard), layers, 1, rank, generator=generator) @ axes
            three.append((common + 0.5 * noise).bfloat16())
        store.write(number, three)


FIT = """
import sys, torch
torch.set_num_threads(1)
import sea_lens as sl

def most():
    # Of this process alone: what getrusage says counts whatever started it.
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20

before = most()
edit = sl.fit(sl.CrossCovariance.load(sys.argv[1]))
print(before, most())
"""


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["2048x1000", "4096x2000"])
    parser.add_argument("--decays", nargs="+", type=float, default=[1.0, 0.7, 0.6, 0.5, 0.0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--energy", type=float, default=0.998)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--store", action="store_true")
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--demonstrations", type=int, default=2000)
    parser.add_argument("--rank-of-signal", type=int, default=40)
    Table.add_option(parser)
    given = parser.parse_args()
    table = Table(given.json)
    torch.set_num_threads(given.threads)
    if given.store:
        with tempfile.TemporaryDirectory() as folder:
            write_store(Path(folder), given.layers, given.width, given.demonstrations, given.rank_of_signal)
            start = time.perf_counter()
            found = subprocess.run([sys.executable, "-c", FIT, folder], check=True, capture_output=True, text=True)
            before, most = map(float, found.stdout.split())
            name = (
                f"fit from a store, {given.layers} layers, d {given.width}, N {given.demonstrations}: peak memory, GiB"
            )
            note = f"{before:.2f} before the fit, {time.perf_counter() - start:.0f} s"
            table.number(name, most, "at most 2", note)
        return
    for size in given.sizes:
        d, n = map(int, size.split("x"))
        for decay in given.decays:
            compare(table, n, d, decay, given.rounds, given.energy)


if __name__ == "__main__":
    main()
