"""Figures; every function draws on given axes, or on new ones, and returns them."""

from .contributions import direction_spectrum, head_map, layer_bars, position_map
from .edits import before_after, comparison, signature, spectra

__all__ = [
    "before_after",
    "comparison",
    "direction_spectrum",
    "head_map",
    "layer_bars",
    "position_map",
    "signature",
    "spectra",
]
