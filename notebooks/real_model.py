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
# # A real model from the hub
#
# What the other notebooks do on the shipped model, on one that people use. It needs a network, or a model and data on
# the disk: set `MODEL` to a folder and `TRUTHFULQA` to a file. Where there is neither it says so and stops, as on the
# machine that the outputs below are of. GPT-2 small takes some minutes on two cores; for a 7B chat model give a GPU,
# and read [docs/what_fits_where.md](../docs/what_fits_where.md) first.

# %%
import os

import matplotlib.pyplot as plt
import pandas as pd

import sea_lens as sl

MODEL = os.environ.get("SEA_LENS_MODEL", "gpt2")
TRUTHFULQA = os.environ.get("SEA_LENS_TRUTHFULQA", "hf:truthfulqa/truthful_qa:multiple_choice:validation")
LIMIT = int(os.environ.get("SEA_LENS_LIMIT", "200"))
try:
    task, model = sl.Task.read("truthfulqa", TRUTHFULQA), sl.load_model(MODEL)
except (sl.SeaLensError, OSError) as error:
    model = None
    print(f"Stops here. {MODEL} and {TRUTHFULQA} cannot both be read: {' '.join(str(error).split())[:300]}")

# %% [markdown]
# ## Demonstrations and questions
#
# TruthfulQA's questions have right and false answers. Half of them serve as demonstrations and the other half is asked,
# so that no question is in both. (The paper's demonstrations are HaluEval's: `sea-lens paper` uses those.)

# %%
if model is not None:
    items = task.items[:LIMIT]
    asked = sl.Task(task.benchmark, task.source, items[1::2], task.template)
    demonstrations = sl.Demonstrations(
        sl.Demonstration(
            f"Q: {item.fields['question']}\nA:",
            f"Q: {item.fields['question']}\nA: {item.answers[item.facts['best'][0]]}",
            f"Q: {item.fields['question']}\nA: {item.answers[item.facts['against'][0]]}",
        )
        for item in items[::2]
    )
    print(len(demonstrations), "demonstrations,", len(asked.items), "questions")
    print(demonstrations[0])

# %% [markdown]
# ## Is it the model that you think it is?
#
# `check_model` runs the model beside Hugging Face's own and looks at every fact that an edit depends on.

# %%
if model is not None:
    print(sl.check_model(model))

# %% [markdown]
# ## Fit, and measure beside the control

# %%
if model is not None:
    covariance = sl.capture(model, demonstrations, progress=False)
    edit = sl.fit(covariance, energy=0.998)
    where = {"layers": f"last-{max(1, round(len(edit.layers) * 21 / 32))}"}
    shuffled = sl.permuted(model, edit, demonstrations, draws=4)
    unedited = sl.evaluate(model, asked, progress=False)
    edited = sl.evaluate(model, asked, edit=edit, **where, progress=False)
    controls = [sl.evaluate(model, asked, edit=one, **where, progress=False) for one in shuffled]
    comparison = sl.compare(unedited, edited, controls=controls)
    print(comparison)
    comparison.plot()
    plt.show()

# %% [markdown]
# ## Which layers carry it?

# %%
if model is not None:
    contrasts = sl.Contrasts(
        sl.Contrast(
            f"Q: {item.fields['question']}\nA:",
            f" {item.answers[item.facts['best'][0]]}",
            f" {item.answers[item.facts['against'][0]]}",
        )
        for item in asked.items[:20]
    )
    layers = sl.layer_contributions(model, edit, contrasts, **where, control=shuffled)
    layers.plot()
    plt.show()

# %% [markdown]
# ## In words

# %%
if model is not None:
    prompts = [contrast.prompt for contrast in contrasts[:4]]
    options = {"max_new_tokens": 20, "stop": "\n"}
    texts = {
        "unedited": sl.generate(model, prompts, **options),
        "edited": sl.generate(model, prompts, edit, **where, **options),
    }
    print(pd.DataFrame(texts, index=prompts).to_string())
