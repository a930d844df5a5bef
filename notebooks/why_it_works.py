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
# # Why the edit works
#
# An edit moves log p(right answer) − log p(wrong answer). Which layers, which positions, which directions and which
# heads carry that change, by which way, and at what cost? This notebook asks first on a model where the answer is
# known.

# %%
import matplotlib.pyplot as plt
import torch

import sea_lens as sl
from sea_lens.testbed.planted import planted

torch.set_num_threads(1)

# %% [markdown]
# ## Where the truth is known
#
# In this circuit the weights were set by hand: an MLP of layer 0 writes the features that the edit acts on, and two
# heads, 1.0 and 2.3, each carry half of the effect to the answer. Everything else only carries noise. (U-[1] is column
# 1 of U⁻, the directions that the edit drops.)

# %%
case = planted("parallel")
given = case.model, case.edit, case.contrasts
print(sl.layer_contributions(*given, "path"))
print(sl.direction_contributions(*given, basis="sides", describe=0))
sl.head_contributions(*given, "necessity").plot()
plt.show()

# %% [markdown]
# ## The shipped model
#
# Here nobody set the weights. The path method integrates the effect along the edit's strength; the layers' values add
# up to the whole effect, and the title says how exactly. Bars carry intervals over contrasts. The grey boxes
# are the control: the same analysis of edits that were fitted with positives and negatives shuffled.

# %%
bed = sl.testbed.load()
bias = bed.behaviours["bias"]
contrasts = bias.contrasts["test"][:64]
covariance = sl.capture(bed.model, bias.demonstrations, site="resid_post", batch_size=64, progress=False)
edit = sl.fit(covariance, rank=8)
shuffled = sl.permuted(bed.model, edit, bias.demonstrations, draws=9, batch_size=64)
given = bed.model, edit, contrasts
where = {"batch_size": 64}
layers = sl.layer_contributions(*given, **where, control=shuffled)
layers.plot()
plt.show()
layers.to_frame()

# %% [markdown]
# Where in the text does it act? Position 0 is the last token of the prompt, where the answer is predicted.

# %%
sl.position_contributions(*given, **where, control=shuffled).plot()
plt.show()

# %% [markdown]
# Each layer's value splits further, into the directions that the edit really changes and the rescaling to the old norm.
# What it keeps and what it drops overlap, and what they share cancels; the net directions are what is left
# ([docs/method.md](../docs/method.md) 8.5), with eigenvalues from 1 (kept alone) to -1 (dropped alone). The largest
# come with the tokens that they raise, the demonstrations that they fire on, and the tokens in context that they move
# most.

# %%
directions = sl.direction_contributions(*given, **where, demonstrations=bias.demonstrations, control=shuffled)
directions.plot()
plt.show()
label, about = next(iter(directions.descriptions.items()))
print(directions.named(label), "raises", [token for token, _ in about.raises[:4]])
for (index, coefficient), text in list(zip(about.fires_on, about.texts, strict=True))[:3]:
    print(f"fires {coefficient:+.1f} on demonstration {index}: {text}")
for text, length in about.moved[:3]:
    print(f"moves {length:+.2f} at {text}")

# %% [markdown]
# How far apart are the two subspaces? Angles of 90 degrees are directions of one side alone; random subspaces of the
# same ranks are grey.

# %%
angles = sl.geometry(edit)
print(angles)
angles.plot()
plt.show()

# %% [markdown]
# The edit acts on the stream; heads only pass on what it changed. What a head writes to the logits itself (direct) is
# one thing, and what its changed output does when it is patched into the unedited run (sufficiency) another. The
# gradient estimates the second from a single backward pass; how far to trust it is in its title.

# %%
for method in ("direct", "sufficiency", "gradient"):
    sl.head_contributions(*given, method, **where, control=shuffled).plot()
    plt.show()

# %% [markdown]
# ## By which way
#
# `mediation` follows the edit of each layer into what reads it: the queries, keys or values of a head, an MLP, or the
# logits themselves. All edges are estimated by one backward pass; the largest are drawn.

# %%
sl.mediation(*given, **where, control=shuffled).plot()
plt.show()

# %% [markdown]
# And what is lost when a part of the model is held as it was? Little here: most of the effect reaches the logits by
# none of these parts.

# %%
sl.frozen(*given, **where, control=shuffled).plot()
plt.show()

# %% [markdown]
# ## Together
#
# Values of single layers can hide that two act only together, or do the same. Off the diagonal stands what a pair does
# beyond its two.

# %%
ax = sl.interactions(*given, **where, control=shuffled).plot()
ax.set(xlabel="layer", ylabel="layer")
plt.show()

# %% [markdown]
# ## At what cost
#
# The effect grows with the strength, and so does the divergence from the unedited model on other texts (`kl`); `worse`
# is the share of contrasts that the edit makes worse, and `mass` what probability is left on the two answers.

# %%
strengths = (0.5, 1.0, 1.5, 2.0)
dose = sl.dose(*given, strengths, bed.documents[:20], **where, control=shuffled)
dose.plot()
plt.show()
dose.to_frame().round(3)

# %% [markdown]
# Three more take longer or another kind of question: `sl.recovery` (how few heads and MLPs suffice together),
# `sl.stability` (how far all of this depends on the demonstrations), and `sl.written` (contrasts of what the model
# writes).
