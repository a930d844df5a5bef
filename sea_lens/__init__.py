"""Spectral editing of activations for TransformerLens models, and why an edit works.

import sea_lens as sl

bed = sl.testbed.load()
edit = sl.fit(sl.capture(bed.model, bed.demonstrations), centre=True)
print(sl.effect(bed.model, edit, bed.contrasts["dev"]))
"""

# Before what takes seconds to import: it watches for interrupts.
from ._support import interrupts as _interrupts  # noqa: F401

# isort: split
from . import testbed
from ._support.statistics import Interval, bootstrap
from .contributions.angles import Geometry, geometry
from .contributions.directions import direction_contributions
from .contributions.freezing import frozen
from .contributions.frozen_results import Frozen
from .contributions.heads import head_contributions
from .contributions.interacting import interactions
from .contributions.interaction_results import Interactions
from .contributions.layers import layer_contributions, position_contributions
from .contributions.mediating import mediation
from .contributions.mediation_results import Mediation
from .contributions.recovering import recovery
from .contributions.recovery_results import Recovery
from .contributions.resampled_fits import stability
from .contributions.results import (
    DirectionContributions,
    DirectionDescription,
    HeadContributions,
    LayerContributions,
    PositionContributions,
)
from .contributions.stability_results import Stability
from .contributions.streaming import stream_contributions
from .contributions.token_by_token import token_contributions
from .contributions.token_results import TokenContributions
from .contributions.truncating import truncation
from .contributions.truncation_results import Truncation
from .contributions.virtual import virtual_weights
from .contributions.virtual_results import VirtualWeights
from .contributions.writing import ScoreContributions, score_contributions, written
from .edits import hf
from .edits.activation import ActivationEdit
from .edits.base import Edit
from .edits.generation import generate
from .edits.in_model import installed, remove_all
from .edits.several import Composed, composed
from .errors import (
    ActivationError,
    DemonstrationError,
    FileError,
    InputError,
    MismatchError,
    MissingPackageError,
    SeaLensError,
    SeaLensWarning,
    UnsupportedModelError,
)
from .evaluation.benchmark import Benchmark
from .evaluation.dose_results import Dose
from .evaluation.dosing import dose, strength_at_kl
from .evaluation.harness import harness_model
from .evaluation.results import Comparison, Evaluation, compare
from .evaluation.run import Task, evaluate
from .evaluation.tuning import tune
from .evaluation.tuning_results import Tuning
from .measure.effects import Effect, effect
from .methods.ablated_direction import DirectionalAblation, directional_ablation
from .methods.adapters import LoRA, lora
from .methods.concept_erasure import LEACE, leace
from .methods.covariance_ratios import GeneralisedEigen, generalised_eigen
from .methods.few_shot import InContext, in_context
from .methods.given_vectors import GivenVectors
from .methods.layer_contrast import DoLa, dola
from .methods.loading import load_edit
from .methods.mean_steering import MeanDifference, mean_difference
from .methods.plane_rotation import AngularSteering, angular_steering
from .methods.probed_heads import ITI, iti
from .methods.saving_as import save_as
from .models.check import check_model
from .models.check_report import Fact, ModelCheck
from .models.load import load_model
from .models.sites import SITES
from .models.token_positions import POSITIONS, prompt_lengths
from .planning.planner import plan
from .planning.plans import Plan, Step
from .spectral.arithmetic import COMBINES
from .spectral.capturing import capture
from .spectral.controls import permuted, randomised, resampled
from .spectral.covariance import CrossCovariance
from .spectral.edit import SpectralEdit
from .spectral.features import FEATURE_MAPS, FeatureMap
from .spectral.fitting import fit, fit_activations
from .texts.demonstrations import Contrasts, Demonstrations
from .texts.items import Contrast, Demonstration
from .texts.prompts import PromptTemplate

__version__ = "0.1.0"

__all__ = [
    "COMBINES",
    "FEATURE_MAPS",
    "ITI",
    "LEACE",
    "POSITIONS",
    "SITES",
    "ActivationEdit",
    "ActivationError",
    "AngularSteering",
    "Benchmark",
    "Comparison",
    "Composed",
    "Contrast",
    "Contrasts",
    "CrossCovariance",
    "Demonstration",
    "DemonstrationError",
    "Demonstrations",
    "DirectionContributions",
    "DirectionDescription",
    "DirectionalAblation",
    "DoLa",
    "Dose",
    "Edit",
    "Effect",
    "Evaluation",
    "Fact",
    "FeatureMap",
    "FileError",
    "Frozen",
    "GeneralisedEigen",
    "Geometry",
    "GivenVectors",
    "HeadContributions",
    "InContext",
    "InputError",
    "Interactions",
    "Interval",
    "LayerContributions",
    "LoRA",
    "MeanDifference",
    "Mediation",
    "MismatchError",
    "MissingPackageError",
    "ModelCheck",
    "PositionContributions",
    "Plan",
    "PromptTemplate",
    "Recovery",
    "ScoreContributions",
    "SeaLensError",
    "SeaLensWarning",
    "SpectralEdit",
    "Stability",
    "Step",
    "Task",
    "TokenContributions",
    "Truncation",
    "Tuning",
    "UnsupportedModelError",
    "VirtualWeights",
    "angular_steering",
    "bootstrap",
    "capture",
    "check_model",
    "compare",
    "composed",
    "direction_contributions",
    "directional_ablation",
    "dola",
    "dose",
    "effect",
    "evaluate",
    "fit",
    "fit_activations",
    "frozen",
    "generalised_eigen",
    "generate",
    "geometry",
    "harness_model",
    "head_contributions",
    "hf",
    "in_context",
    "installed",
    "interactions",
    "iti",
    "layer_contributions",
    "leace",
    "load_edit",
    "load_model",
    "lora",
    "mean_difference",
    "mediation",
    "permuted",
    "plan",
    "position_contributions",
    "prompt_lengths",
    "randomised",
    "recovery",
    "remove_all",
    "resampled",
    "save_as",
    "score_contributions",
    "stability",
    "stream_contributions",
    "strength_at_kl",
    "testbed",
    "token_contributions",
    "truncation",
    "tune",
    "virtual_weights",
    "written",
]


def __dir__() -> list[str]:
    """The public names alone, without the rooms that hold them."""
    return __all__
