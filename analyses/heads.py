"""Which heads carry an edit's effect onwards, by every method: a table and a figure.

python analyses/heads.py                                        the shipped model and an edit of it
python analyses/heads.py --model M --edit E.safetensors --contrasts F.jsonl --out heads
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from common import add_inputs, controls, inputs

import sea_lens as sl

METHODS = ("direct", "sufficiency", "necessity", "gradient")


def main() -> None:
    """Measure, print, write `heads.csv` and `heads.png`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_inputs(parser)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--out", type=Path, default=Path("heads"))
    arguments = parser.parse_args()
    model, edit, contrasts = inputs(arguments)

    where = {"layers": arguments.layers, "strength": arguments.strength, "batch_size": 64}
    beside = controls(arguments, model, edit)
    results = [
        sl.head_contributions(model, edit, contrasts, method, **where, control=beside, progress=True)
        for method in arguments.methods
    ]
    for result in results:
        print(result)
        for name, values in result.others.items():
            print(f"  {name} {values.sum():+.4f}")
        if "correlation" in result.details:
            sampled = len(result.details["sampled_heads"])
            print(f"  correlation to sufficiency on {sampled} heads {result.details['correlation']:.4f}")

    arguments.out.mkdir(parents=True, exist_ok=True)
    table = pd.concat([result.to_frame().assign(method=result.method) for result in results])
    table.to_csv(arguments.out / "heads.csv", index=False)
    rows, columns = -(-len(results) // 2), min(2, len(results))
    size = (7.0 * columns, (1.6 + 0.5 * results[0].values.shape[0]) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for result, ax in zip(results, axes.flat, strict=False):
        result.plot(ax)
    figure.savefig(arguments.out / "heads.png", dpi=150)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
