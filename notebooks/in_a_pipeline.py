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
# # Inside an existing TransformerLens pipeline
#
# You have hooks, caches and patching code already, and want an edit in it. An edit gives `fwd_hooks` as any other
# intervention does, and works with `run_with_hooks`, `run_with_cache` and `hooks` on a `HookedTransformer` as on a
# `TransformerBridge`. This notebook edits within a pipeline of its own, patches activations of the edited run into the
# unedited one, and attributes the change of the logits to heads by hand; then it compares with what sea_lens measures.

# %%
import matplotlib.pyplot as plt
import torch
from einops import einsum

import sea_lens as sl

torch.set_num_threads(1)
bed = sl.testbed.load()
model, contrasts = bed.model, bed.contrasts["test"]
covariance = sl.capture(model, bed.demonstrations, batch_size=64, progress=False)
edit = sl.fit(covariance, rank=16)
where = {"layers": "first-2", "strength": 1.5}
print(type(model).__name__, edit)

# %% [markdown]
# ## As hooks
#
# `fwd_hooks` checks that the edit fits the model, and returns pairs of a hook point and a function. They are hooks like
# your own, and stand beside them: here one that counts how often it is called.

# %%
tokens = torch.cat([model.to_tokens(contrast.prompt, prepend_bos=True) for contrast in contrasts])
target, foil = (
    torch.tensor([model.to_single_token(getattr(contrast, side)) for contrast in contrasts])
    for side in ("target", "foil")
)
hooks = edit.fwd_hooks(model, **where)
calls = []


def counting(x, hook):
    calls.append(hook.name)


def logit_difference(logits):
    """log p(target) − log p(foil) of every question, in nats."""
    rows = torch.arange(len(logits))
    return logits[rows, -1, target] - logits[rows, -1, foil]


with torch.no_grad():
    before = logit_difference(model(tokens))
    after = logit_difference(model.run_with_hooks(tokens, fwd_hooks=[*hooks, ("blocks.2.hook_resid_post", counting)]))
print([name for name, _ in hooks], f"and a hook of one's own, called {len(calls)} time")
print(f"change of the contrast: {(after - before).mean().item():+.4f} nats")

# %% [markdown]
# The same number as `sl.effect` gives, with its interval. (Where an answer is one token, a difference of logits is one
# of log-probabilities.) Whether it is more than any fit moves is told by a control: [first_edit](first_edit.ipynb).

# %%
found = sl.effect(model, edit, contrasts, **where, batch_size=64)
print(found)
assert torch.allclose(found.items.float(), after - before, atol=1e-4)

# %% [markdown]
# ## Caches of both runs
#
# Within `applied` whatever you run is edited, and `run_with_cache` among it. On leaving, the model is as it was.

# %%
with torch.no_grad():
    _, plain = model.run_with_cache(tokens)
    with edit.applied(model, **where):
        _, edited = model.run_with_cache(tokens)
assert sl.installed(model) == []

# %% [markdown]
# ## Activation patching
#
# Take the stream of the edited run at one layer and one position, put it into the unedited run, and see how much of the
# effect comes with it. Positions are counted from the end, where the answer is predicted.

# %%
n_layers, n_positions = 3, tokens.shape[1]


def patched(layer, position):
    """Mean change of the contrast where the edited stream is put in at one place."""
    name = f"blocks.{layer}.hook_resid_post"

    def hook(x, hook):
        x = x.clone()
        x[:, position] = edited[name][:, position]
        return x

    with torch.no_grad():
        return (logit_difference(model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])) - before).mean().item()


moved = torch.tensor([[patched(layer, position) for position in range(n_positions)] for layer in range(n_layers)])
words = model.to_str_tokens(contrasts[0].prompt, prepend_bos=True)

fig, ax = plt.subplots(figsize=(8, 2.8), layout="constrained")
bound = moved.abs().max().item()
image = ax.imshow(moved, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
ax.set_xticks(range(n_positions), words, fontsize=9)
ax.set_yticks(range(n_layers))
ax.set_xlabel("position, by the words of the first question")
ax.set_ylabel("layer")
ax.set_title(f"edited stream put into the unedited run; the whole edit {found.effect:+.3f} nats", fontsize=10)
fig.colorbar(image, label="change of the contrast, nats")
plt.show()

# %% [markdown]
# Behind the last layer only the last position is read, so that patching there brings the whole effect.

# %%
assert abs(moved[-1, -1].item() - found.effect) < 1e-4

# %% [markdown]
# ## Direct logit attribution
#
# What each head writes into the stream, read by the difference of the two unembedding vectors, edited minus unedited.
# The final norm divides by its own scale in each run.

# %%
direction = model.W_U[:, target] - model.W_U[:, foil]


def by_head(cache):
    """What each head adds to the logit difference, (layers, heads), mean over questions, in logits."""
    scale = cache["ln_final.hook_scale"][:, -1]
    rows = []
    for layer in range(n_layers):
        z = cache[f"blocks.{layer}.attn.hook_z"][:, -1]
        written = einsum(z, model.blocks[layer].attn.W_O, "b head d_head, head d_head d -> b head d")
        read = einsum(written / scale[:, None], direction * norm_weight[:, None], "b head d, d b -> b head")
        rows.append(read.mean(0))
    return torch.stack(rows)


# A norm's weight stands between the stream and the unembedding, unless it was folded in.
norm_weight = getattr(model.ln_final, "w", getattr(model.ln_final, "weight", None))
norm_weight = torch.ones(model.cfg.d_model) if norm_weight is None else norm_weight
with torch.no_grad():
    mine = by_head(edited) - by_head(plain)

# %% [markdown]
# sea_lens does the same, and more: all that is no head is in it too, so that everything adds up to the change (its
# closure error says how exactly), with intervals over questions and a control where one is given.

# %%
heads = sl.head_contributions(model, edit, contrasts, "direct", **where, batch_size=64)
print(f"largest difference from the lines above: {(heads.values - mine).abs().max().item():.1e}")
print(f"everything adds up to {heads.total:+.4f}, the change is {heads.effect:+.4f}")
heads.plot()
plt.show()
