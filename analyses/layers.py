"""Which layers carry an edit's effect, by every method: a table and a figure.

python analyses/layers.py                                       the shipped model and an edit of it
python analyses/layers.py --model M --edit E.safetensors --contrasts F.jsonl --out layers
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from common import add_inputs, controls, inputs

import sea_lens as sl

METHODS = ("path", "shapley", "leave_one_out", "only_one")


def main() -> None:
    """Measure, print, write `layers.csv` and `layers.png`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_inputs(parser)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--out", type=Path, default=Path("layers"))
    arguments = parser.parse_args()
    model, edit, contrasts = inputs(arguments)

    where = {"layers": arguments.layers, "strength": arguments.strength, "batch_size": 64}
    beside = controls(arguments, model, edit)
    results = [
        sl.layer_contributions(model, edit, contrasts, method, **where, control=beside) for method in arguments.methods
    ]
    table = pd.concat([result.to_frame().assign(method=result.method) for result in results])
    print(f"effect {results[0].effect:+.4f} nats over {len(contrasts)} contrasts")
    print(table.pivot(index="layer", columns="method", values="value").to_string(float_format="{:+.4f}".format))
    for result in results:
        print(f"{result.method}: sum {result.total:+.4f}, off the effect by {result.closure_error:.1e}")
        if beside:
            p = ", ".join(f"{x:.2g}" for x in result.p_values(corrected=True).tolist())
            print(f"  p of the effect {result.effect_p_value:.2g}, of layers, corrected, {p}")

    arguments.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out / "layers.csv", index=False)
    columns = min(2, len(results))
    rows = -(-len(results) // columns)
    size = (5.5 * columns, 3.6 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, layout="constrained", squeeze=False)
    for result, ax in zip(results, axes.flat, strict=False):
        result.plot(ax)
    figure.savefig(arguments.out / "layers.png", dpi=150)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
