"""Contributions of layers, positions, directions and heads to an edit's effect (SEA.md section 7)."""

from .describe import DirectionDescription
from .directions import direction_contributions
from .heads import head_contributions
from .layers import layer_contributions, position_contributions
from .results import DirectionContributions, HeadContributions, LayerContributions, PositionContributions

__all__ = [
    "DirectionContributions",
    "DirectionDescription",
    "HeadContributions",
    "LayerContributions",
    "PositionContributions",
    "direction_contributions",
    "head_contributions",
    "layer_contributions",
    "position_contributions",
]
