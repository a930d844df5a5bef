"""The shipped model: a small Llama that knows the truths and the myths of a made-up world, and its prejudices.

In reading order: `world` and `peoples` (what it was trained on), `corpus` (both, mixed), `tokenizer`, `train` (how it
was trained), `behaviours` (truth and bias, with demonstrations and questions), `bed` (`load` gives all of it), `files`
(its questions as the files of benchmarks), `choosing` (which edit, on dev), `answers` (counted before and after an
edit), `demo` (the main job, from capture to the numbers of a report), `circuits` and `planted` (further models, whose
weights are set by hand).
"""

from .bed import PATH, Testbed, load

__all__ = ["PATH", "Testbed", "load"]
