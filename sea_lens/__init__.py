"""Spectral editing of activations for TransformerLens models, and why an edit works.

import sea_lens as sl

bed = sl.testbed.load()
edit = sl.fit(sl.capture(bed.model, bed.demonstrations), centre=True)
print(sl.effect(bed.model, edit, bed.contrasts["dev"]))
"""

from . import testbed
from .capture import capture
from .contributions import (
    DirectionContributions,
    DirectionDescription,
    HeadContributions,
    LayerContributions,
    PositionContributions,
    direction_contributions,
    head_contributions,
    layer_contributions,
    position_contributions,
)
from .controls import MeanDifference, mean_difference, permuted, randomised
from .covariance import CrossCovariance
from .demonstrations import Contrast, Contrasts, Demonstration, Demonstrations
from .effect import Effect, effect
from .errors import (
    ActivationError,
    DemonstrationError,
    FileError,
    InputError,
    MismatchError,
    SeaLensError,
    UnsupportedModelError,
)
from .features import FEATURE_MAPS, FeatureMap
from .fitting import fit, fit_activations
from .generation import generate
from .intervention import ActivationEdit
from .models.load import load_model
from .models.sites import SITES
from .spectral import SpectralEdit
from .statistics import Interval, bootstrap
from .subspaces import COMBINES

__version__ = "0.1.0"

__all__ = [
    "COMBINES",
    "FEATURE_MAPS",
    "SITES",
    "ActivationEdit",
    "ActivationError",
    "Contrast",
    "Contrasts",
    "CrossCovariance",
    "Demonstration",
    "DemonstrationError",
    "Demonstrations",
    "DirectionContributions",
    "DirectionDescription",
    "Effect",
    "FeatureMap",
    "FileError",
    "HeadContributions",
    "InputError",
    "Interval",
    "LayerContributions",
    "MeanDifference",
    "MismatchError",
    "PositionContributions",
    "SeaLensError",
    "SpectralEdit",
    "UnsupportedModelError",
    "bootstrap",
    "capture",
    "direction_contributions",
    "effect",
    "fit",
    "fit_activations",
    "generate",
    "head_contributions",
    "layer_contributions",
    "load_model",
    "mean_difference",
    "permuted",
    "position_contributions",
    "randomised",
    "testbed",
]
