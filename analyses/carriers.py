"""Which layers, heads and directions carry the effects? Those of other methods too? (our own question).

    python analyses/carriers.py [--model M --data DIR]

Contributions of layers and heads to the effect of each behaviour's edit, with their controls; contributions of heads to
the effects of mean-difference steering, ITI and LEACE. Then how alike the rankings of heads are (Spearman), beside the
rankings of the spectral edit's own fits to shuffled demonstrations: what these share with it is not owed to the labels.
And how much of one edit's kept subspace lies in the other's, and of the mean difference in each (mean squared cosine of
the principal angles; random subspaces have rank / width).
"""

import itertools

import numpy as np
import pandas as pd
import torch

import sea_lens as sl
from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.others import others
from sea_lens.paper.subject import Fitted, Subject
from sea_lens.plots.findings import correlations

# Contrasts that contributions are measured on.
MOST = 64


def run(subject: Subject) -> Finding:
    """Contributions of every edit, and how alike they are."""
    rows, told, figures, not_run = [], [], {}, [*subject.reasons()]
    heads: dict[str, np.ndarray] = {}
    shuffled: dict[str, np.ndarray] = {}
    fitted: dict[str, Fitted] = {}
    for behaviour in subject.behaviours():
        fitted[behaviour] = subject.fitted(behaviour)
        edit, where = fitted[behaviour].edit, subject.where(behaviour)
        controls = fitted[behaviour].shuffled(subject.draws)
        contrasts = subject.contrasts(behaviour)[:MOST]
        model, size = subject.model, subject.batch_size
        by_layer = sl.layer_contributions(model, edit, contrasts, **where, batch_size=size, control=controls)
        by_head = sl.head_contributions(
            model, edit, contrasts, "sufficiency", **where, batch_size=size, control=controls
        )
        figures |= {f"{behaviour}_layers": by_layer.plot(), f"{behaviour}_heads": by_head.plot()}
        rows.append(by_layer.to_frame().assign(behaviour=behaviour, edit="SEA", what="layer"))
        rows.append(by_head.to_frame().assign(behaviour=behaviour, edit="SEA", what="head"))
        top = by_head.to_frame().iloc[by_head.values.abs().flatten().argmax().item()]
        beside = f" (p = {top['p']:.2f} of {len(controls)} shuffled fits)" if controls else ""
        told.append(
            f"{behaviour.capitalize()}. The edit moves the contrast by {by_head.effect:+.3f} nats; the head that "
            f"passes on most is {int(top['head'])} of layer {int(top['layer'])}, with {top['value']:+.3f}{beside}."
        )
        heads[f"{behaviour}, SEA"] = by_head.values.flatten().numpy()
        if by_head.control_values is not None:
            shuffled[behaviour] = by_head.control_values.flatten(1).numpy()
        for name, other in others(subject, behaviour).items():
            if not other.moves:
                continue
            try:
                found = sl.head_contributions(
                    model, other.fit(), contrasts, "sufficiency", **other.where, batch_size=size
                )
            except sl.SeaLensError as error:
                not_run.append(f"{name}, {behaviour}: {error}")
                continue
            heads[f"{behaviour}, {name}"] = found.values.flatten().numpy()
            rows.append(found.to_frame().assign(behaviour=behaviour, edit=name, what="head"))
    if heads:
        alike = pd.DataFrame(heads).corr(method="spearman")
        figures["alike"] = correlations(alike, "Do the edits use the same heads?", "rank correlation of heads")
        rows.append(pairs(alike))
        told += shared_heads(alike, heads, shuffled)
    rows.append(directions(fitted))
    told += shared_directions(rows[-1])
    return Finding(pd.concat(rows), "\n".join(told), figures, not_run=tuple(not_run))


def pairs(alike: pd.DataFrame) -> pd.DataFrame:
    """A row for each pair of edits."""
    found = [
        {"what": "rank correlation of heads", "edit": f"{one} and {other}", "value": alike.loc[one, other]}
        for one, other in itertools.combinations(alike.columns, 2)
    ]
    return pd.DataFrame(found)


def shared_heads(alike: pd.DataFrame, heads: dict[str, np.ndarray], shuffled: dict[str, np.ndarray]) -> list[str]:
    """Sentences on the rankings that matter: both behaviours, and each method beside the spectral edit."""
    told = []
    for one, other in itertools.combinations(alike.columns, 2):
        behaviour, _, method = one.partition(", ")
        if method != "SEA" or not (other.startswith(behaviour) or other.endswith("SEA")):
            continue
        told.append(f"Heads of {one} and {other}: rank correlation {alike.loc[one, other]:+.2f}.")
    for behaviour, draws in shuffled.items():
        ours = pd.Series(heads[f"{behaviour}, SEA"])
        values = [ours.corr(pd.Series(draw), method="spearman") for draw in draws]
        told.append(
            f"Heads of {behaviour}, SEA and of its {len(values)} fits to shuffled demonstrations: "
            f"{min(values):+.2f} to {max(values):+.2f}."
        )
    return told


def directions(fitted: dict[str, Fitted]) -> pd.DataFrame:
    """How much of one edit's kept subspace lies in the other's, and of the mean difference in each, by layer."""
    found = []
    for behaviour, one in fitted.items():
        if one.edit.at.per_head:
            continue
        steering = sl.mean_difference(one.captured.covariance)
        for layer in one.edit.layers:
            # The second projection is onto what is left when the dropped directions are gone.
            keep, leave = one.edit.projections(layer)
            for side, projection in (("kept", keep), ("dropped", torch.eye(len(leave)) - leave)):
                vector = steering.vectors[layer].flatten().double()
                share = (vector @ projection @ vector / (vector @ vector)).item()
                what, chance = f"share of the mean difference in the {side} subspace", rank(projection)
                found.append({"what": what, "behaviour": behaviour, "layer": layer, "value": share})
                found[-1]["chance"] = chance / len(vector)
    if len(fitted) == 2:
        found += overlaps(*(one.edit for one in fitted.values()))
    return pd.DataFrame(found)


def overlaps(one: sl.SpectralEdit, other: sl.SpectralEdit) -> list[dict[str, object]]:
    """How much of one edit's kept subspace lies in the other's, by layer."""
    found: list[dict[str, object]] = []
    if one.site != other.site or one.at.per_head:
        return found
    for layer in sorted({*one.layers} & {*other.layers}):
        first, second = one.projections(layer)[0], other.projections(layer)[0]
        ranks = [rank(first), rank(second)]
        value, chance = (first * second).sum().item() / min(ranks), max(ranks) / first.shape[0]
        found.append({"what": "overlap of kept subspaces", "layer": layer, "value": value, "chance": chance})
    return found


def rank(projection: object) -> float:
    """Of a projection: its trace."""
    return float(np.trace(np.asarray(projection)))


def shared_directions(table: pd.DataFrame) -> list[str]:
    """Sentences on subspaces, with what random ones would share."""
    told = []
    for what, rows in table.groupby("what", sort=False) if len(table) else ():
        for behaviour, some in rows.groupby(rows.get("behaviour"), dropna=False, sort=False):
            of = f"{behaviour}, " if isinstance(behaviour, str) else ""
            told.append(
                f"{of}{what}, by layer: {some['value'].min():.0%} to {some['value'].max():.0%}; of random ones "
                f"{some['chance'].min():.0%} to {some['chance'].max():.0%}."
            )
    return [one[0].upper() + one[1:] for one in told]


if __name__ == "__main__":
    command(run, __doc__)
