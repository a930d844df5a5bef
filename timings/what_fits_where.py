"""Writes docs/what_fits_where.md: what `sl.plan` says of some well-known shapes.

    python timings/what_fits_where.py > docs/what_fits_where.md

Nothing is loaded: a shape is a configuration.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import sea_lens as sl


class Shape(NamedTuple):
    """A table of the page."""

    title: str
    sizes: dict[str, int]
    where: dict[str, Any]


def _llama(width: int, layers: int, heads: int, of_keys: int, inner: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": of_keys,
        "intermediate_size": inner,
        "vocab_size": 32_000,
        "max_position_embeddings": 4096,
    }


SMALL = _llama(4096, 32, 32, 32, 11_008)
MIDDLE = _llama(5120, 40, 40, 40, 13_824)
LARGE = _llama(8192, 80, 64, 8, 28_672)
SHAPES = (
    Shape("Llama-2-7B on a GPU of 24 GB", SMALL, {"device": "cuda", "memory": "24GB"}),
    Shape("Llama-2-7B on a laptop of 32 GB", SMALL, {"device": "cpu", "memory": "32GB"}),
    Shape("Llama-2-13B on a GPU of 80 GB", MIDDLE, {"device": "cuda", "memory": "80GB"}),
    Shape("Llama-2-70B on a GPU of 80 GB", LARGE, {"device": "cuda", "memory": "80GB"}),
)
# Beside these, sufficiency differs in its passes alone.
QUICK = ("load", "capture", "fit", "capture, store", "fit, store")
STEPS = (*QUICK, "effect", "path", "direct", "gradient", "generate")

BEFORE = """# What fits where

`sea-lens plan --model M --demonstrations F` says of every step on a model, before any weight is read, how much memory
it holds at most, how many passes it makes and how many tokens they read, and what it writes; `sl.plan` is the same in
Python. `M` is a folder with a `config.json`; weights need not be there, and a tokenizer only if tokens are to be exact.
How near that is to measured peaks stands in [plan_against_peaks.md](plan_against_peaks.md), on a GPU in
[plan_against_peaks_gpu.md](plan_against_peaks_gpu.md).

```
sea-lens plan --model llama-folder --demonstrations demos.jsonl --device cuda --memory 24GB
```

## How to read it

- *Memory* is what a process holds at most in a step, above one that has imported the same: the weights, and what the
  step adds. On a GPU, *host* is what stands in the machine's memory at the same time.
- *pass* is the largest forward pass, with its cache of keys and values, logits, and what is kept for a backward pass.
  It is counted: the package's own code runs on a model of the configuration that has sizes and no numbers (torch's
  meta device), in two and three layers, and what a layer adds is added for every further one.
- *activations* or *sums* are what a fit needs: of fewer demonstrations than the activations are wide their activations,
  else two d × d sums for each layer (method.md 2.2).
- *decomposition* is the fit of one layer; layers are fitted one after another. How many directions an energy takes is
  not known before: 32 are planned for, and *at worst* is the full decomposition (method.md 2.6). `--rank` settles it.
- *passes* are forward passes, and backward ones behind the plus; *tokens* are those that forward passes read, padding
  counted.
- What the allocator of a GPU keeps for later, and the context of CUDA (about half a gigabyte), come on top.

## What to do if it does not fit

| what does not fit | what to do |
| --- | --- |
| the weights | `dtype="bfloat16"`; several GPUs by `device_map="auto"`; 8 or 4 bits by `quantization_config` |
| the weights, whatever is done | `device_map={"": "disk"}` brings a block of them at a time; passes become slow |
| `capture`: sums or activations | `capture(store="folder")`: in files, which a fit reads one layer at a time |
| `capture`: the pass | a smaller `batch_size` |
| `fit` | a store, and the fit in a process that has not loaded the model |
| `path`, `gradient` | a smaller `batch_size`; `path`: later layers (`layers="last-2"`), which keep less |
| `effect`, `generate` | a smaller `batch_size` |

Each step that does not fit says which of these would make it fit.

## Some shapes

1,000 demonstrations of 128 tokens with answers of 32, and 200 contrasts of as many; site `mlp_out`, all layers, a
TransformerBridge in bfloat16, batches of 16. `python timings/what_fits_where.py` writes this page.
"""


def plan_of(shape: Shape, steps: Iterable[str]) -> sl.Plan:
    """The plan of a table."""
    from transformers import AutoConfig

    config = AutoConfig.for_model("llama", **shape.sizes)
    return sl.plan(config, backend="bridge", dtype="bfloat16", steps=steps, **shape.where)


def rows(plan: sl.Plan) -> list[str]:
    """The lines of a table: one for each step, and its advice."""
    lines = []
    for row, step in zip(plan.rows, plan.steps, strict=True):
        cells = {**row, "fits": f"no: {step.advice}" if step.advice else row["fits"]}
        lines.append("| " + " | ".join(cells.values()) + " |")
    return lines


def page() -> Iterator[str]:
    """The lines of the page."""
    yield BEFORE
    for shape in SHAPES:
        plan = plan_of(shape, STEPS)
        head = list(plan.rows[0])
        yield f"### {shape.title}\n"
        yield "| " + " | ".join(head) + " |"
        yield "| " + " | ".join("---" for _ in head) + " |"
        yield from rows(plan)
        yield ""


if __name__ == "__main__":
    for line in page():
        print(line)
