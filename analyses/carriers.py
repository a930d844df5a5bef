"""What carries the effects of both behaviours: layers, heads and directions, and whether they are the same.

    python analyses/carriers.py [--model M --data DIR]

Contributions of layers and heads to the effect of each behaviour's edit and of mean-difference steering, with their
controls; how alike the rankings of heads are (Spearman), and how much of one edit's kept and dropped subspace lies in
the other's (mean squared cosine of the principal angles; two random subspaces have rank / width).
"""

import itertools

import numpy as np
import pandas as pd
import torch

import sea_lens as sl
from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.subject import Subject

# Contrasts that contributions are measured on.
MOST = 64


def run(subject: Subject) -> Finding:
    """Contributions of every edit, and how alike they are."""
    rows, told, figures = [], [], {}
    heads: dict[str, torch.Tensor] = {}
    edits = {}
    for behaviour in subject.behaviours():
        fitted, where = subject.fitted(behaviour), subject.where(behaviour)
        edits[behaviour] = fitted.edit
        controls = fitted.shuffled(subject.draws)
        contrasts = subject.contrasts(behaviour)[:MOST]
        common = {**where, "batch_size": subject.batch_size}
        steering = sl.mean_difference(fitted.captured.covariance)
        by_layer = sl.layer_contributions(subject.model, fitted.edit, contrasts, **common, control=controls)
        figures[f"{behaviour}_layers"] = by_layer.plot()
        rows.append(by_layer.to_frame().assign(behaviour=behaviour, edit="SEA", what="layer"))
        for name, edit, beside in (("SEA", fitted.edit, controls), ("mean difference", steering, [])):
            found = sl.head_contributions(subject.model, edit, contrasts, "sufficiency", **common, control=beside)
            heads[f"{behaviour}, {name}"] = found.values.flatten()
            rows.append(found.to_frame().assign(behaviour=behaviour, edit=name, what="head"))
            if name == "SEA":
                figures[f"{behaviour}_heads"] = found.plot()
                top = found.to_frame().iloc[found.values.abs().flatten().argmax().item()]
                told.append(
                    f"{behaviour.capitalize()}. The edit moves the contrast by {found.effect:+.3f} nats; the head that "
                    f"passes on most is {int(top['head'])} of layer {int(top['layer'])}, with {top['value']:+.3f}."
                )
    for one, other in itertools.combinations(heads, 2):
        rank = pd.Series(heads[one].numpy()).corr(pd.Series(heads[other].numpy()), method="spearman")
        rows.append(pd.DataFrame([{"what": "rank correlation of heads", "edit": f"{one} and {other}", "value": rank}]))
        told.append(f"Heads of {one} and {other}: rank correlation {rank:+.2f}.")
    if len(edits) == 2:
        rows.append(overlaps(*edits.values()))
        shared, chance = rows[-1]["value"], rows[-1]["chance"]
        told.append(
            f"Of the kept subspaces of the two edits {shared.min():.0%} to {shared.max():.0%} is shared by layer; "
            f"of random ones of these ranks {chance.min():.0%} to {chance.max():.0%}."
        )
    return Finding(pd.concat(rows) if rows else pd.DataFrame(), " ".join(told), figures, not_run=subject.reasons())


def overlaps(one: sl.SpectralEdit, other: sl.SpectralEdit) -> pd.DataFrame:
    """How much of one edit's kept subspace lies in the other's, by layer."""
    found = []
    for layer in sorted({*one.layers} & {*other.layers}):
        first, second = one.projections(layer)[0], other.projections(layer)[0]
        ranks = [float(np.trace(projection.numpy())) for projection in (first, second)]
        found.append(
            {
                "what": "overlap of kept subspaces",
                "layer": layer,
                "value": (first * second).sum().item() / min(ranks),
                "chance": max(ranks) / first.shape[0],
            }
        )
    return pd.DataFrame(found)


if __name__ == "__main__":
    command(run, __doc__)
