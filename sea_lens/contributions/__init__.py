"""Contributions of layers and heads to an edit's effect (SEA.md section 7)."""

from .heads import head_contributions
from .layers import layer_contributions
from .results import HeadContributions, LayerContributions

__all__ = ["HeadContributions", "LayerContributions", "head_contributions", "layer_contributions"]
