"""What does the edit do to the cloud of activations? (the paper's figure of t-SNE).

    python analyses/projections.py [--model M --data DIR]

Activations of wanted and unwanted answers at the bottom, the middle and the top layer that is edited, before and after
the edit, in the first two principal components and by t-SNE. Beside the pictures stands a number that no picture can
suggest: how well a logistic regression tells the two apart, on demonstrations that it was not fitted to.
"""

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


def run(subject: Subject) -> Finding:
    """Project and probe."""
    rows, told, figures = [], [], {}
    for behaviour in subject.behaviours():
        fitted, where = subject.fitted(behaviour), subject.where(behaviour)
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
            for state, cloud in states.items():
                rows.append({"behaviour": behaviour, "layer": layer, "state": state, **told_apart(cloud, n)})
            axes = PCA(2, random_state=0).fit(before)
            points["PCA"].append([axes.transform(cloud) for cloud in states.values()])
            points["t-SNE"].append([embedded(cloud) for cloud in states.values()])
        for kind, grid in points.items():
            figures[f"{behaviour}_{kind.lower().replace('-', '')}"] = clouds(
                grid, [f"layer {layer}" for layer in shown], ["before", "after"], labels, f"{kind}, {behaviour}"
            )
        own = [row for row in rows if row["behaviour"] == behaviour]
        parts = [
            f"layer {layer}: {before['accuracy']:.2f} → {after['accuracy']:.2f}"
            for layer, before, after in zip(shown, own[::2], own[1::2], strict=True)
        ]
        told.append(
            f"{behaviour.capitalize()}. Wanted and unwanted answers are told apart, before → after the edit, in these "
            f"shares of demonstrations (0.5 is chance): {', '.join(parts)}."
        )
    captions = dict.fromkeys(figures, "activations of wanted and unwanted answers before and after the edit")
    return Finding(pd.DataFrame(rows), "\n".join(told), figures, captions, subject.reasons())


def embedded(cloud: np.ndarray) -> np.ndarray:
    """Two dimensions by t-SNE, from principal components, the same every time."""
    perplexity = min(30.0, (len(cloud) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(cloud)


def told_apart(cloud: np.ndarray, n: int) -> dict[str, float]:
    """Accuracy of a probe over demonstrations left out, with its interval."""
    labels = np.repeat([1, 0], n)
    # Both texts of a demonstration are left out together.
    folds = np.tile(np.arange(n) % 5, 2)
    splits = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(min(5, n))]
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    told = np.asarray(cross_val_predict(probe, cloud, labels, cv=splits))
    right = np.equal(told, labels)
    interval = sl.bootstrap(right.astype(float))
    return {"accuracy": interval.mean, "low": interval.low, "high": interval.high}


if __name__ == "__main__":
    command(run, __doc__)
