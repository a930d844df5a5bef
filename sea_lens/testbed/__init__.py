"""The shipped model: a small Llama that knows the truth and the myth for every question of a made-up world.

`load` gives the model with its demonstrations and contrasts; `world` says what it was trained on, `train` how.
"""

from .bed import PATH, Testbed, load

__all__ = ["PATH", "Testbed", "load"]
