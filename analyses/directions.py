"""Which singular directions carry an edit's effect, and what they stand for: a table and a figure.

python analyses/directions.py                                   the shipped model and an edit of it
python analyses/directions.py --model M --edit E.safetensors --contrasts F.jsonl --out directions
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from common import add_inputs, controls, demonstrations, inputs

import sea_lens as sl


def main() -> None:
    """Measure, print, write `directions.csv` and `directions.png`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_inputs(parser)
    parser.add_argument("--out", type=Path, default=Path("directions"))
    arguments = parser.parse_args()
    model, edit, contrasts = inputs(arguments)

    where = {"layers": arguments.layers, "strength": arguments.strength, "batch_size": 64}
    demos, beside = demonstrations(arguments), controls(arguments, model, edit)
    result = sl.direction_contributions(model, edit, contrasts, demonstrations=demos, **where, control=beside)
    print(result)
    for label, about in result.descriptions.items():
        value = result.values[result.labels.index(label)]
        raised = " ".join(token for token, _ in about.raises[:5])
        print(f"{result.named(label)}  {value:+.4f}  raises {raised}")
        for (_, coefficient), text in list(zip(about.fires_on, about.texts, strict=True))[:2]:
            print(f"    fires {coefficient:+.2f} on {text!r}")

    arguments.out.mkdir(parents=True, exist_ok=True)
    result.to_frame().to_csv(arguments.out / "directions.csv", index=False)
    figure = result.plot().get_figure(root=True)
    assert figure is not None
    figure.savefig(arguments.out / "directions.png", dpi=150)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
