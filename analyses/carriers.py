"""Which layers, heads and directions carry the effects? Those of other methods too? (our own question).

    python analyses/carriers.py [--model M --data DIR]

Contributions of layers and heads to the effect of each behaviour's edit, with their controls; contributions of heads to
the effects of mean-difference steering, ITI and LEACE. Then how alike the rankings of heads are (Spearman), beside the
rankings of the spectral edit's own fits to shuffled demonstrations: what these share with it is not owed to the labels.
And how much of one edit's kept subspace lies in the other's, and of the mean difference in each (mean squared cosine of
the principal angles; random subspaces have rank / width).
"""

import itertools
from typing import Any

import numpy as np
import pandas as pd

import sea_lens as sl
from sea_lens.paper.command import command
from sea_lens.paper.data import drawn
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
        if not fitted[behaviour].edit.feature.is_identity:
            name = fitted[behaviour].edit.feature.name
            not_run.append(f"{behaviour}, subspaces: those of an edit through {name} are not subspaces of activations")
        edit, where = fitted[behaviour].edit, subject.where(behaviour)
        controls = fitted[behaviour].shuffled(subject.draws)
        asked = subject.contrasts(behaviour)
        contrasts = sl.Contrasts(asked[place] for place in drawn(MOST, len(asked)))
        model, size = subject.model, subject.batch_size
        by_layer = sl.layer_contributions(model, edit, contrasts, **where, batch_size=size, control=controls)
        by_head = sl.head_contributions(
            model, edit, contrasts, "sufficiency", **where, batch_size=size, control=controls
        )
        figures |= {f"{behaviour}_layers": by_layer.plot(), f"{behaviour}_heads": by_head.plot()}
        rows.append(by_layer.to_frame().assign(behaviour=behaviour, edit="SEA", what="layer"))
        rows.append(by_head.to_frame().assign(behaviour=behaviour, edit="SEA", what="head"))
        top = by_head.to_frame().iloc[by_head.values.abs().flatten().argmax().item()]
        effect = sl.bootstrap(by_head.item_effects.numpy(), kind="number")
        beside = f" (p = {by_head.effect_p_value:.2f} of {len(controls)} shuffled fits)" if controls else ""
        corrected = f"; p = {top['p_corrected']:.2f}, corrected for all heads" if controls else ""
        told.append(f"{behaviour.capitalize()}.")
        told.append(
            f"The edit moves the contrast by {by_head.effect:+.3f} nats [{effect.low:+.3f}, {effect.high:+.3f}]"
            f"{beside}, on {len(contrasts)} of {len(asked)} questions."
        )
        told.append(
            f"The head that passes on most is {int(top['head'])} of layer {int(top['layer'])}, with "
            f"{top['value']:+.3f} [{top['low']:+.3f}, {top['high']:+.3f}]{corrected}."
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
        if one.edit.feature.is_identity and not one.edit.at.per_head:
            for pair in sl.geometry(one.edit, sl.mean_difference(one.captured.covariance)).pairs:
                found.append(shared(pair, f"share of the mean difference in the {pair.subspace} subspace", behaviour))
    edits = [one.edit for one in fitted.values()]
    alike = len({one.site for one in edits}) == 1 and all(one.feature.is_identity for one in edits)
    if len(edits) == 2 and alike and not edits[0].at.per_head:
        pairs = sl.geometry(edits[0], edits[1]).pairs
        kept = [pair for pair in pairs if pair.subspace == pair.other_subspace == "kept"]
        found += [shared(pair, "overlap of kept subspaces") for pair in kept]
    return pd.DataFrame(found)


def shared(pair: Any, what: str, behaviour: str | None = None) -> dict[str, Any]:
    """A row: what two subspaces share, and what random ones would."""
    row = {"what": what, "layer": pair.layer, "value": pair.overlap, "chance": pair.random_overlap}
    return row if behaviour is None else {**row, "behaviour": behaviour}


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
