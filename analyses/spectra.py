"""How many directions hold the covariance? (the paper's figure of the spectra).

    python analyses/spectra.py [--model M --data DIR]

The share of the spectral energy that is left beyond k directions, by layer, for wanted and unwanted answers; and how
many directions the edit's energy or rank takes.
"""

import pandas as pd

from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.subject import Subject
from sea_lens.plots.edits import spectra


def run(subject: Subject) -> Finding:
    """Whole spectra of every behaviour's edit."""
    rows, told, figures = [], [], {}
    for behaviour in subject.behaviours():
        edit = subject.fitted(behaviour, whole_spectrum=True).edit
        left = {}
        for layer in edit.layers:
            sides = []
            for side, spectrum in zip(("wanted", "unwanted"), edit.subspaces[layer].spectra, strict=True):
                sides.append(spectrum.left(2)[0].clamp(min=0).numpy())
                values = spectrum.values[0].tolist()
                rows += [
                    {
                        "behaviour": behaviour,
                        "layer": layer,
                        "side": side,
                        "k": k,
                        "singular_value": value,
                        "left": left,
                    }
                    for k, (value, left) in enumerate(zip(values, sides[-1].tolist(), strict=True), start=1)
                ]
            left[layer] = sides
        figures[behaviour] = spectra(
            left, {layer: [float(rank) for rank in edit.ranks[layer]] for layer in edit.layers}
        )
        figures[behaviour].set_title(f"Spectra of the cross-covariances: {behaviour}", fontsize=10)
        first = {layer: 1 - sides[0][0] for layer, sides in left.items()}
        kept = ", ".join(f"{layer}: {pair[0]} and {pair[1]}" for layer, pair in edit.ranks.items())
        told.append(
            f"{behaviour.capitalize()}. The first direction alone holds {min(first.values()):.1%} to "
            f"{max(first.values()):.1%} of the energy of wanted answers. Directions kept and dropped by layer: {kept}."
        )
    return Finding(pd.DataFrame(rows), "\n".join(told), figures, not_run=subject.reasons())


if __name__ == "__main__":
    command(run, __doc__)
