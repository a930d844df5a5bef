# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A feature map and an analysis of your own
#
# Linear spectral editing keeps and drops directions. With a feature function φ it does so with φ(x), and takes the
# inverse of what is left. sea_lens has three such maps. This notebook adds a fourth, tries all of them against fits to
# shuffled demonstrations, and then asks a question that sea_lens has no function for.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import sea_lens as sl

torch.set_num_threads(1)
bed = sl.testbed.load()
bias = bed.behaviours["bias"]

# %% [markdown]
# ## A map
#
# A map needs a name, φ, its inverse, and the range that the inverse accepts: what a projection gives may lie outside of
# it and is clamped. Here is the signed square root, which brings large coordinates nearer to small ones. Its inverse is
# defined everywhere, so that the range can be left out. Whether the inverse is one is a line to check.


# %%
def signed_root(x):
    return x.sign() * x.abs().sqrt()


def signed_square(y):
    return y * y.abs()


root = sl.FeatureMap("signed root", signed_root, signed_square)
x = torch.linspace(-50, 50, 1001)
(root.inverse(root.forward(x)) - x).abs().max().item()

# %% [markdown]
# One pass over the demonstrations serves all maps. The identity is the linear edit, to compare with.

# %%
maps = [*sl.FEATURE_MAPS, root]
read = sl.capture(bed.model, bias.demonstrations, feature=maps, site="resid_post", batch_size=64, progress=False)
edits = {name: sl.fit(covariance, rank=8) for name, covariance in read.items()}
edits["signed root"]

# %% [markdown]
# Does it help? An effect says little by itself. Beside each stands the range of fits with right and wrong answers
# shuffled by the toss of a coin: what lies within it is not owed to the labels.

# %%
rows = {}
for name, edit in edits.items():
    shuffled = sl.permuted(bed.model, edit, bias.demonstrations, draws=9, batch_size=64)
    found = sl.effect(bed.model, edit, bias.contrasts["dev"], batch_size=64, control=shuffled)
    control = found.control_effects
    rows[name] = {
        "effect": found.effect,
        "low": found.interval.low,
        "high": found.interval.high,
        "shuffled, lowest": control.min().item(),
        "shuffled, highest": control.max().item(),
    }
table = pd.DataFrame(rows).T
table.round(3)

# %%
fig, ax = plt.subplots(figsize=(7.5, 2.8), layout="constrained")
# A range must not look cut off where it ends.
ax.use_sticky_edges = False
places = np.arange(len(table))[::-1]
low, high = table["shuffled, lowest"], table["shuffled, highest"]
ax.barh(places, high - low, left=low, height=0.6, color="#c9c9c9", label="range of 9 fits to shuffled demonstrations")
spread = [table["effect"] - table["low"], table["high"] - table["effect"]]
ax.errorbar(table["effect"], places, xerr=spread, fmt="o", color="#1b6ca8", capsize=3, label="effect, 95 % interval")
ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
ax.set_yticks(places, table.index)
ax.set_xlabel("change of log p(right) − log p(wrong), nats")
ax.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 1.3), ncols=2)
plt.show()

# %% [markdown]
# A map helps where its interval is above zero and above its own range. Where the effect is above the range and not
# above zero, the labels only make it harm less.
#
# An edit with a map of your own is saved and loaded like any other. A file cannot hold functions, so that loading asks
# for the map again, by its name: `sl.SpectralEdit.load(path, feature=root)`.
#
# ## An analysis
#
# How far does an edit turn an activation, and does it turn those of questions that it mends further than others? An
# edit is a function of activations, `edit(x, layer)`, so that this takes a few lines: read the stream at the last token
# of each question, edit it, and take the angle.

# %%
edit = edits["identity"]
contrasts = bias.contrasts["test"]
names = {layer: f"blocks.{layer}.hook_resid_post" for layer in edit.layers}


def last_activations(prompts):
    """The stream behind the edited layers at the last token, by layer, (questions, d_model)."""
    found = {layer: [] for layer in names}
    for prompt in prompts:
        tokens = bed.model.to_tokens(prompt, prepend_bos=True)
        _, cache = bed.model.run_with_cache(tokens, names_filter=list(names.values()))
        for layer, name in names.items():
            found[layer].append(cache[name][0, -1])
    return {layer: torch.stack(rows) for layer, rows in found.items()}


def angles(edit, activations):
    """By how many degrees the edit turns each activation."""
    turned = {}
    for layer, rows in activations.items():
        cosines = torch.nn.functional.cosine_similarity(rows, edit(rows, layer), dim=-1)
        turned[layer] = torch.rad2deg(cosines.clamp(-1, 1).acos()).numpy()
    return turned


activations = last_activations([contrast.prompt for contrast in contrasts])
found = sl.effect(bed.model, edit, contrasts, batch_size=64)
change = found.items.numpy()
{layer: f"{rows.mean():.1f} degrees" for layer, rows in angles(edit, activations).items()}

# %% [markdown]
# The angle beside what the edit does to the question. The rank correlation of the two has a control like everything
# else: the same number for the fits to shuffled demonstrations, each with its own angles and its own changes.

# %%
shuffled = sl.permuted(bed.model, edit, bias.demonstrations, draws=9, batch_size=64)


def correlations(edit):
    """Rank correlation of angle and change of the contrast, by layer."""
    change = pd.Series(sl.effect(bed.model, edit, contrasts, batch_size=64).items.numpy())
    return {layer: change.corr(pd.Series(rows), method="spearman") for layer, rows in angles(edit, activations).items()}


ours, beside = correlations(edit), pd.DataFrame([correlations(one) for one in shuffled])
fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True, layout="constrained")
for ax, (layer, rows) in zip(axes, angles(edit, activations).items(), strict=True):
    ax.scatter(rows, change, s=10, color="#1b6ca8")
    ax.axhline(0, color="black", linewidth=0.8, linestyle=":")
    ax.set_xlabel(f"angle at layer {layer}, degrees")
    span = f"{beside[layer].min():+.2f} to {beside[layer].max():+.2f}"
    ax.set_title(f"rank correlation {ours[layer]:+.2f}\n9 shuffled fits {span}", fontsize=10)
axes[0].set_ylabel("change of the contrast, nats")
plt.show()

# %% [markdown]
# A correlation within the range of the shuffled fits is not owed to the labels, and where that range lies on both sides
# of zero, a fit of this rank has one or the other by chance: nothing then says that questions which the edit mends are
# turned further than others.
