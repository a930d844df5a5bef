"""What does the edit do to the cloud of activations? (the paper's figure of t-SNE).

    python analyses/projections.py [--model M --data DIR]

Activations of wanted and unwanted answers at the bottom, the middle and the top layer that is edited, before and after
the edit, in the first two principal components and by t-SNE. Beside the pictures stands a number that no picture can
suggest: how well a logistic regression tells the two apart, on demonstrations that it was not fitted to.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sea_lens as sl
from sea_lens.paper.command import command
from sea_lens.paper.findings import Finding
from sea_lens.paper.subject import Subject
from sea_lens.plots.findings import clouds

# More points than this are a blot.
MOST = 200
FOLDS = 5
# Demonstrations that a cloud and a probe need.
FEWEST = 2 * FOLDS


def run(subject: Subject) -> Finding:
    """Project and probe."""
    rows, told, figures, not_run = [], [], {}, [*subject.reasons()]
    for behaviour in subject.behaviours():
        fitted, where = subject.fitted(behaviour), subject.where(behaviour)
        if len(fitted.captured.demonstrations) < FEWEST:
            not_run.append(f"{behaviour}: fewer than {FEWEST} demonstrations, too few for a cloud and a probe")
            continue
        controls = fitted.shuffled(subject.draws)
        told.append(f"{behaviour.capitalize()}.")
        layers = list(fitted.edit.layers)
        edited = {int(layer) for layer in subject.edited_layers(behaviour)}
        layers = [layer for layer in layers if layer in edited]
        shown = sorted({layers[0], layers[len(layers) // 2], layers[-1]})
        points: dict[str, list[list[np.ndarray]]] = {"PCA": [], "t-SNE": []}
        labels: list[str] = []
        for layer in shown:
            wanted, unwanted = (side[:MOST] for side in fitted.captured.sides(layer))
            n = len(wanted)
            labels = ["wanted"] * n + ["unwanted"] * n
            before = np.concatenate([wanted, unwanted])
            after = fitted.edit(torch.from_numpy(before), layer, strength=where["strength"]).numpy()
            states = {"before": before, "after": after}
            right = {state: told_apart(cloud, n) for state, cloud in states.items()}
            turned = [one(torch.from_numpy(before), layer, strength=where["strength"]).numpy() for one in controls]
            change = [(told_apart(cloud, n) - right["before"]).mean() for cloud in turned]
            for state, items in right.items():
                interval = sl.bootstrap(items, kind="number")
                row = {"accuracy": interval.mean, "low": interval.low, "high": interval.high}
                rows.append({"behaviour": behaviour, "layer": layer, "state": state, **row})
            told.append(in_words(layer, right, change))
            axes = PCA(2, random_state=0).fit(before)
            points["PCA"].append([axes.transform(cloud) for cloud in states.values()])
            points["t-SNE"].append([embedded(cloud) for cloud in states.values()])
        for kind, grid in points.items():
            figures[f"{behaviour}_{kind.lower().replace('-', '')}"] = clouds(
                grid, [f"layer {layer}" for layer in shown], ["before", "after"], labels, f"{kind}, {behaviour}"
            )
    captions = dict.fromkeys(figures, "activations of wanted and unwanted answers before and after the edit")
    return Finding(pd.DataFrame(rows), "\n".join(told), figures, captions, tuple(not_run))


def embedded(cloud: np.ndarray) -> np.ndarray:
    """Two dimensions by t-SNE, from principal components, the same every time."""
    perplexity = min(30.0, (len(cloud) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(cloud)


def told_apart(cloud: np.ndarray, n: int) -> np.ndarray:
    """Which share of its two texts a probe tells right of each demonstration, fitted to others."""
    labels = np.repeat([1, 0], n)
    # Both texts of a demonstration are left out together.
    folds = np.tile(np.arange(n) % FOLDS, 2)
    splits = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(FOLDS)]
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    right = np.equal(np.asarray(cross_val_predict(probe, cloud, labels, cv=splits)), labels)
    return (right[:n].astype(float) + right[n:]) / 2


def in_words(layer: int, right: Mapping[str, np.ndarray], controls: Sequence[float]) -> str:
    """How well wanted and unwanted answers are told apart at a layer, and what the edit changes of that."""
    before, after = (sl.bootstrap(items, kind="number") for items in right.values())
    change = sl.bootstrap(right["after"] - right["before"], kind="number")
    # Without any spread there is no interval: nothing has changed.
    clear = change.excludes(0.0)
    verdict = "clearly " + ("better" if change.mean > 0 else "worse") if clear else "no clear change"
    if clear and len(controls) and min(controls) <= change.mean <= max(controls):
        verdict += ", but fits to shuffled demonstrations do as much"
    beside = (
        ""
        if not len(controls)
        else f"; {len(controls)} fits to shuffled demonstrations {min(controls):+.3f} to {max(controls):+.3f}"
    )
    return (
        f"A probe of layer {layer} tells wanted from unwanted answers in {_share(before)} of the texts before the edit "
        f"and in {_share(after)} after it (0.5 is chance): {change}{beside}: {verdict}."
    )


def _share(found: sl.Interval) -> str:
    return f"{found.mean:.3f} {found.brackets('.3f')}"


if __name__ == "__main__":
    command(run, __doc__)
