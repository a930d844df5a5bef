"""Do the methods find what is planted? A table of those of layers, directions and heads on circuits set by hand.

    python analyses/planted.py [--backend hooked]

In every row, "planted" is the largest error of a planted part's share of the effect, and "others" the largest share
that anything else got; both should be near zero.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import pandas as pd

import sea_lens as sl
from sea_lens.testbed.circuits import CIRCUITS
from sea_lens.testbed.planted import Planted, planted


def rows_of(name: str, case: Planted) -> list[dict[str, object]]:
    """One row for each method."""
    given = case.model, case.edit, case.contrasts
    layers, heads = case.circuit.layers, case.circuit.carried
    results: list[tuple[Any, Mapping[Any, float]]] = [
        (sl.layer_contributions(*given, m), layers) for m in ("path", "shapley", "leave_one_out", "only_one")
    ]
    results.append((sl.direction_contributions(*given, basis="sides", describe=0), case.directions))
    results.append((sl.head_contributions(*given, "direct"), case.circuit.direct))
    results += [(sl.head_contributions(*given, m), heads) for m in ("sufficiency", "necessity", "gradient")]
    if case.circuit.site == "z":
        results += [(sl.head_contributions(*given, m), heads) for m in ("path", "leave_one_out", "only_one")]
    rows = []
    for result, shares in results:
        values = zip(result.labels, result.values.flatten().tolist(), strict=True)
        found = {label: value / result.effect for label, value in values}
        rows.append(
            {
                "circuit": name,
                "of": type(result).__name__.removesuffix("Contributions").lower() + "s",
                "method": result.method,
                "effect": result.effect,
                "planted": max((abs(found[label] - share) for label, share in shares.items()), default=0.0),
                "others": max((abs(share) for label, share in found.items() if label not in shares), default=0.0),
            }
        )
    return rows


def main() -> None:
    """Build every circuit, run every method, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="auto")
    arguments = parser.parse_args()
    rows = [row for name in CIRCUITS for row in rows_of(name, planted(name, arguments.backend))]
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.6f}".format))


if __name__ == "__main__":
    main()
