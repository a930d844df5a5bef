"""Which heads carry an edit's effect onwards: direct contributions, a table and a figure.

python analyses/heads.py                                        the shipped model and an edit of it
python analyses/heads.py --model M --edit E.safetensors --contrasts F.jsonl --out heads
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from common import add_inputs, inputs

import sea_lens as sl


def main() -> None:
    """Measure, print, write `heads.csv` and `heads.png`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_inputs(parser)
    parser.add_argument("--out", type=Path, default=Path("heads"))
    arguments = parser.parse_args()
    model, edit, contrasts = inputs(arguments)

    result = sl.head_contributions(
        model, edit, contrasts, layers=arguments.layers, strength=arguments.strength, batch_size=64
    )
    print(f"change of the logit difference {result.effect:+.4f}, closure error {result.closure_error:.1e}")
    for (layer, head), value in result.top(10):
        print(f"head {layer}.{head}  {value:+.4f}")
    for name, values in result.others.items():
        print(f"{name}  {values.sum():+.4f}")

    arguments.out.mkdir(parents=True, exist_ok=True)
    result.to_frame().to_csv(arguments.out / "heads.csv", index=False)
    axes = result.plot()
    axes.get_figure().savefig(arguments.out / "heads.png", dpi=150)  # type: ignore[union-attr]
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
