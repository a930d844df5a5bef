"""The shipped model: a small Llama that knows the truth and the myth for every question of a made-up world.

In reading order: `world` (what it was trained on), `tokenizer`, `train` (how it was trained), `bed` (`load` gives the
model with its demonstrations and contrasts), `planted` (further models, whose weights are set by hand), `answers`
(counted before and after an edit), `demo` (the main job, from capture to the numbers of a report).
"""

from .bed import PATH, Testbed, load

__all__ = ["PATH", "Testbed", "load"]
