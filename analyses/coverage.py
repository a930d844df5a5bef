"""How often intervals of 95 % hold the mean: plain percentile bootstrap, as it was, beside `sl.bootstrap`.

    python analyses/coverage.py                          2,000 simulations, about a minute
    python analyses/coverage.py --simulations 500 --sizes 5 20 --out coverage.md

For each distribution and each number of items, samples are drawn from a known distribution and the share of intervals
that hold its mean is counted. A sample without an interval (a single item; numbers that are all equal) claims nothing:
it is left out of the coverage, and its share stands in the column "none". An interval of width zero is one that claims
certainty; its share stands in "no width".
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

import sea_lens as sl
from sea_lens._support.resampling import bootstrap_bounds

SIZES = (1, 2, 5, 8, 10, 20, 30, 50, 100, 200)
SIMULATIONS = 2000
RESAMPLES = 1000
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def _paired(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Differences of two correct-or-not answers: 15 % mended, 5 % broken."""
    return rng.choice([1.0, -1.0, 0.0], p=[0.15, 0.05, 0.8], size=shape)


def _ties(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Zero for four of five items, exponential for the others."""
    return rng.exponential(size=shape) * (rng.random(shape) < 0.2)


# Name, how to draw, and the true mean.
DISTRIBUTIONS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.normal(size=shape), 0.0),
    "log-normal": (lambda rng, shape: rng.lognormal(size=shape), math.exp(0.5)),
    "Bernoulli 0.1": (lambda rng, shape: (rng.random(shape) < 0.1).astype(float), 0.1),
    "Bernoulli 0.5": (lambda rng, shape: (rng.random(shape) < 0.5).astype(float), 0.5),
    "paired Bernoulli": (_paired, 0.1),
    "t, 3 degrees": (lambda rng, shape: rng.standard_t(3, size=shape), 0.0),
    "80 % zeros": (_ties, 0.2),
}


def percentile(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ends of the plain percentile bootstrap of each sample: (2, samples)."""
    n = samples.shape[1]
    counts = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return np.quantile(counts @ samples.T / n, [0.025, 0.975], axis=0)


def chosen(samples: np.ndarray) -> np.ndarray:
    """Ends of `sl.bootstrap` of each sample: (2, samples)."""
    # Samples of numbers share their draws, which depend on n alone, and are computed side by side.
    ends = np.stack(bootstrap_bounds(samples.T))
    special = np.isin(samples, (-1.0, 0.0, 1.0)).all(1)
    known: dict[bytes, tuple[float, float]] = {}
    for place in np.flatnonzero(special):
        items = np.sort(samples[place])
        if items.tobytes() not in known:
            interval = sl.bootstrap(items)
            known[items.tobytes()] = interval.low, interval.high
        ends[:, place] = known[items.tobytes()]
    first = sl.bootstrap(samples[0])
    assert np.allclose(ends[:, 0], (first.low, first.high), equal_nan=True)
    return ends


def measured(ends: np.ndarray, mean: float) -> dict[str, float]:
    """Coverage of the intervals that there are, the share without one and without width, and the median width."""
    low, high = ends[:, ~np.isnan(ends[0])]
    width = high - low
    return {
        "coverage": float(np.mean((low <= mean) & (mean <= high))) if len(low) else math.nan,
        "none": 1 - len(low) / ends.shape[1],
        "no width": float(np.mean(width == 0)) if len(low) else math.nan,
        "width": float(np.median(width)) if len(low) else math.nan,
    }


def coverage(name: str, n: int, simulations: int, *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Both intervals on samples of one distribution and size."""
    draw, mean = DISTRIBUTIONS[name]
    rng = np.random.default_rng([seed, n, list(DISTRIBUTIONS).index(name)])
    samples = draw(rng, (simulations, n))
    return {"before": measured(percentile(samples, rng), mean), "after": measured(chosen(samples), mean)}


def table(sizes: list[int], simulations: int) -> str:
    """The coverage tables in Markdown."""
    header = "| items | n | before | no width | width | after | none | no width | width |"
    lines = [header, "| --- " * 9 + "|"]
    for name in DISTRIBUTIONS:
        for n in sizes:
            found = coverage(name, n, simulations)
            before, after = found["before"], found["after"]
            cells = [before["coverage"], before["no width"], before["width"]]
            cells += [after["coverage"], after["none"], after["no width"], after["width"]]
            shown = ["" if math.isnan(cell) else f"{cell:.3f}" for cell in cells]
            lines.append(f"| {name} | {n} | " + " | ".join(shown) + " |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Simulate, print, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--simulations", type=int, default=SIMULATIONS)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=Path("coverage.md"))
    arguments = parser.parse_args()
    text = table(arguments.sizes, arguments.simulations)
    arguments.out.write_text(
        "# Coverage of 95 % intervals\n\n"
        f"Written by `python analyses/coverage.py`: {arguments.simulations} simulations for each row. Before: the "
        "percentile bootstrap. After: `sl.bootstrap` (docs/method.md 6.7). A sample without an interval is left out of "
        "the coverage; its share is in the column none.\n\n" + text + "\n",
        encoding="utf-8",
    )
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
