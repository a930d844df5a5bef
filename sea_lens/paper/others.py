"""The other methods at their customary settings, to stand beside the spectral edit.

Every method at its own best, and all at one divergence, is `analyses/methods.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..edits.base import Edit
from ..methods.adapters import lora
from ..methods.concept_erasure import leace
from ..methods.few_shot import in_context
from ..methods.layer_contrast import dola
from ..methods.mean_steering import mean_difference
from ..methods.probed_heads import iti
from ..spectral.capturing import capture
from .subject import Subject

EXAMPLES = 4
# Of ITI on LLaMA-7B: 48 of 1024 heads, strength 15 (Li et al. 2023).
SHARE_OF_HEADS, ITI_STRENGTH = 48 / 1024, 15.0


@dataclass(frozen=True)
class Other:
    """A method as it is customarily used.

    Attributes:
        fit: makes the edit.
        where: where and how strongly it acts, as `applied` takes it.
        moves: whether it changes activations, so that heads and layers can be asked what carries it.
    """

    fit: Callable[[], Edit]
    where: dict[str, Any] = field(default_factory=dict)
    moves: bool = True


def others(subject: Subject, behaviour: str) -> dict[str, Other]:
    """The methods for a behaviour of a subject, by name."""
    model, demonstrations = subject.model, subject.demonstrations(behaviour)
    reading: dict[str, Any] = {"batch_size": subject.batch_size, "progress": False}
    layers = subject.where(behaviour)["layers"]
    heads = max(1, int(subject.n_heads * SHARE_OF_HEADS))
    return {
        "ICL": Other(lambda: in_context(model, demonstrations, EXAMPLES, subject.separator), moves=False),
        "mean difference": Other(lambda: mean_difference(capture(model, demonstrations, **reading)), {"strength": 2.0}),
        "ITI": Other(lambda: iti(model, demonstrations, heads=heads, **reading), {"strength": ITI_STRENGTH}),
        "LEACE": Other(lambda: leace(model, demonstrations, **reading), {"layers": layers}),
        "DoLa": Other(lambda: dola(model, relative_top=0), moves=False),
        "LoRA-FT": Other(lambda: lora(model, demonstrations, progress=False), moves=False),
    }
