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
# # A first edit
#
# The package ships a small language model that has prejudices about made-up peoples. Told that two of them met, and
# asked who did a bad deed, it names the one whom the stereotype names, though the scene does not say. This notebook
# fits a spectral edit from demonstrations of right and of prejudiced answers, applies it, measures what it does, and
# looks at where the effect comes from. (Its other behaviour is `bed.behaviours["truth"]`.)

# %%
import matplotlib.pyplot as plt
import torch

import sea_lens as sl

torch.set_num_threads(1)
bed = sl.testbed.load()
bias = bed.behaviours["bias"]
bias.demonstrations[0]

# %% [markdown]
# A demonstration is three full texts: the prompt, the prompt with the wanted answer, and the prompt with the unwanted
# one. `capture` runs them through the model and sums up what a fit needs; `fit` finds, in the residual stream behind
# every layer, the directions of the prompt's activation that covary with right answers, and those that covary with
# prejudiced ones. All layers are edited, which `layers=` changes when the edit is applied, at strength 1; site and rank
# are what was chosen on other questions, as `sea-lens demo --behaviour bias` has it.

# %%
covariance = sl.capture(bed.model, bias.demonstrations, site="resid_post", batch_size=64, progress=False)
edit = sl.fit(covariance, rank=8)
edit

# %% [markdown]
# Does it work? `effect` gives the change of log p(right answer) − log p(wrong answer) with its interval, on scenes
# about other deeds and other pairs of peoples. A number alone says little: edits that were fitted with right and wrong
# shuffled move the model as well, so look at them together. The p-value is the rank of the edit among them; with 19 it
# can be as small as 0.05.

# %%
shuffled = sl.permuted(bed.model, edit, bias.demonstrations, draws=19, batch_size=64)
contrasts = bias.contrasts["test"]
effect = sl.effect(bed.model, edit, contrasts, batch_size=64, control=shuffled)
print(effect)
effect.plot()
plt.show()

# %% [markdown]
# Which layers does the effect come from? `leave_one_out` says what is lost without a layer's edit.

# %%
layers = sl.layer_contributions(bed.model, edit, contrasts, "leave_one_out", batch_size=64, control=shuffled)
layers.plot()
plt.show()
layers.to_frame()

# %% [markdown]
# The edit acts on the stream; heads of later layers carry its effect onwards. Direct contributions of all heads and
# everything else add up to the change of the logit difference, which is checked in every call.

# %%
heads = sl.head_contributions(bed.model, edit, contrasts, batch_size=64, control=shuffled)
print(f"change {heads.effect:+.4f}, sum of all contributions {heads.total:+.4f}, error {heads.closure_error:.0e}")
heads.plot()
plt.show()

# %% [markdown]
# In words, before and after; and in your own TransformerLens pipeline:

# %%
prompts = [contrast.prompt for contrast in contrasts[::13]]
before = sl.generate(bed.model, prompts, max_new_tokens=1)
after = sl.generate(bed.model, prompts, edit, max_new_tokens=1)
for prompt, one, two in zip(prompts, before, after, strict=True):
    print(f"{prompt}{one}  →{two}")

logits = bed.model.run_with_hooks(prompts[0], fwd_hooks=edit.fwd_hooks(bed.model, strength=0.5))
logits.shape
