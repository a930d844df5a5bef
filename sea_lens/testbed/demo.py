"""The main job on the shipped model, from capture to a report: what `sea-lens demo` runs.

Options are chosen on the dev questions by a stated rule, and the test questions are looked at once.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .._support.progress import tracked
from .._support.statistics import Interval, bootstrap
from ..contributions.direct import direct_contributions
from ..contributions.directions import by_direction, described
from ..contributions.heads import patching_contributions
from ..contributions.integral import outside_inference_mode, path_contributions
from ..contributions.layers import by_layer, layer_games
from ..contributions.patching import METHODS as PATCHING_METHODS
from ..contributions.results import Contributions
from ..contributions.study import Study
from ..edits.activation import ActivationEdit
from ..evaluation.multiple_choice import mc1, mc2
from ..measure.effects import Effect, effect_between, effect_from
from ..measure.scorer import Scorer, contrast_scorer, text_scorer
from ..methods.mean_steering import mean_difference
from ..models.lens import Lens
from ..models.tokens import encode_completion
from ..spectral.capturing import Captured, capture
from ..spectral.controls import permuted_fits, randomised
from ..spectral.edit import SpectralEdit
from ..spectral.fitting import fit
from .answers import greedy_answers
from .bed import Testbed, contrasts_of
from .world import RELIABLE_SOURCES

ENERGIES = (0.99, 0.999, 0.9999)
# Around the number of different answers. An energy gives every layer another rank, and uncentred a small one.
RANKS = (6, 9, 12)
CENTRES = (False, True)
LAYERS = ("all", "first-2", "last-2")
STRENGTHS = (1.0, 1.5)
MEAN_DIFFERENCE_STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
MINIMUM_MASS = 0.9
DEV_DRAWS = 4
RULE = (
    "the largest lower end of the effect's 95 % interval on the dev questions, less the mean of its control "
    f"({DEV_DRAWS} draws of random subspaces of the same ranks; none for steering), among the settings that leave at "
    f"least {MINIMUM_MASS:.0%} of the unedited model's probability mass on the two answers"
)
LAYER_METHODS = ("path", "shapley", "leave_one_out", "only_one")
HEAD_METHODS = ("direct", "sufficiency", "necessity", "gradient")
RANDOM_DRAWS = 20
# Fits to shuffled demonstrations beside the effect and every contribution: with 19, p-values reach 0.05.
CONTROL_DRAWS = 19
BATCH_SIZE = 64


@dataclass(frozen=True)
class Choice:
    """One point of the grid and what it does on dev.

    Attributes:
        edit: spectral, or mean-difference steering.
        options: how it was fitted and where it acts.
        effect: on the contrasts of dev.
        control: mean effect of random subspaces of the same ranks in nats, 0 for steering.
    """

    edit: ActivationEdit
    options: dict[str, Any]
    effect: Effect
    control: float

    @property
    def margin(self) -> float:
        """Lower end of the effect beyond the control, which the rule asks to be largest."""
        return self.effect.interval.low - self.control

    @property
    def allowed(self) -> bool:
        """Whether the rule admits it."""
        return bool(self.effect.after_mass.mean() >= MINIMUM_MASS * self.effect.before_mass.mean())

    def row(self) -> dict[str, Any]:
        """Options and dev numbers, for the report."""
        return {
            **self.options,
            "effect": self.effect.effect,
            "control": self.control,
            "margin": self.margin,
            "mass": self.effect.after_mass.mean().item(),
            "allowed": self.allowed,
        }


@dataclass(frozen=True)
class MethodResult:
    """What one method does on test.

    Attributes:
        options: chosen on dev.
        effect: on the contrasts.
        mc1, mc2: before, after, and the interval of the paired change.
        loss: nats per token on held-out documents, before, after and the interval of the change.
    """

    options: dict[str, Any]
    effect: Effect
    mc1: tuple[float, float, Interval]
    mc2: tuple[float, float, Interval]
    loss: tuple[float, float, Interval]


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo measured.

    Attributes:
        edit: the spectral edit that was chosen on dev.
        grid: options and dev numbers of every spectral edit that was tried.
        spectral: what the chosen edit does on test.
        steering: what mean-difference steering does on test, at its own best on dev.
        random_effects: effects on test of random subspaces of the edit's ranks, in nats. They disturb the model more
            than an edit does.
        reliable_source: what naming a reliable source in the question does to the contrasts of test.
        contributions: of layers, directions and heads to the effect on test, by name, such as "layers_path".
        answers: every test question with the greedy answers before and after the edit.
    """

    edit: SpectralEdit
    grid: list[dict[str, Any]]
    spectral: MethodResult
    steering: MethodResult
    random_effects: list[float]
    reliable_source: Effect
    contributions: dict[str, Contributions]
    answers: list[dict[str, str]]


@outside_inference_mode
def run_demo(bed: Testbed, *, progress: bool = True) -> DemoResult:
    """Capture, fit, choose on dev, report on test; the same numbers every time."""
    model = bed.model
    covariance = capture(model, bed.demonstrations, batch_size=BATCH_SIZE, progress=progress)
    dev, test = (contrast_scorer(model, bed.contrasts[split], batch_size=BATCH_SIZE) for split in ("dev", "test"))
    dev_unedited = dev.log_probs()

    def tried(edit: ActivationEdit, **options: Any) -> Choice:
        where = {"layers": options["layers"], "strength": options["strength"]}
        control = 0.0
        if isinstance(edit, SpectralEdit):
            draws = [randomised(edit, 1000 + seed) for seed in range(DEV_DRAWS)]
            control = sum(effect_from(dev, dev_unedited, model, draw, **where).effect for draw in draws) / DEV_DRAWS
        return Choice(edit, options, effect_from(dev, dev_unedited, model, edit, **where), control)

    sizes: list[dict[str, Any]] = [*({"energy": energy} for energy in ENERGIES), *({"rank": rank} for rank in RANKS)]
    fits = [
        ({"centre": centre, "energy": None, "rank": None, **size}, fit(covariance, centre=centre, **size))
        for centre, size in itertools.product(CENTRES, sizes)
    ]
    points = list(itertools.product(fits, LAYERS, STRENGTHS))
    choices = [
        tried(edit, **options, layers=layers, strength=strength)
        for (options, edit), layers, strength in tracked(points, "choosing options on dev", len(points), show=progress)
    ]
    chosen = _best(choices)
    edit = chosen.edit
    assert isinstance(edit, SpectralEdit)
    where = {"layers": chosen.options["layers"], "strength": chosen.options["strength"]}
    steering_choices = [
        tried(mean_difference(covariance), layers=layers, strength=strength)
        for layers, strength in itertools.product(LAYERS, MEAN_DIFFERENCE_STRENGTHS)
    ]

    measure = _test_measure(bed, test)
    test_unedited = test.log_probs()
    draws = range(RANDOM_DRAWS)
    random_effects = [
        effect_from(test, test_unedited, model, randomised(edit, seed), **where).effect
        for seed in tracked(draws, "random subspaces", RANDOM_DRAWS, show=progress)
    ]
    captured = Captured.of(model, edit, bed.demonstrations, batch_size=BATCH_SIZE)
    control = permuted_fits(edit, captured, CONTROL_DRAWS, progress=progress)
    on_test = measure(chosen)
    beside = [effect_from(test, test_unedited, model, one, **where).effect for one in control]
    return DemoResult(
        edit=edit,
        grid=[choice.row() for choice in choices],
        spectral=replace(
            on_test, effect=replace(on_test.effect, control_effects=torch.tensor(beside, dtype=torch.float64))
        ),
        steering=measure(_best(steering_choices)),
        random_effects=random_effects,
        reliable_source=_reliable_source(bed, test_unedited),
        contributions=_contributions(bed, chosen, captured, control, progress),
        answers=greedy_answers(bed, chosen.edit, where, BATCH_SIZE),
    )


def _contributions(
    bed: Testbed, chosen: Choice, captured: Captured, control: Sequence[SpectralEdit], progress: bool
) -> dict[str, Contributions]:
    """What carries the effect of the chosen edit on test, beside the same analyses of its controls."""
    where = {"layers": chosen.options["layers"], "strength": chosen.options["strength"]}
    common: dict[str, Any] = {"batch_size": BATCH_SIZE, "progress": progress}
    # One study, so that what several analyses need of the edit and of each control is run once.
    study = Study.of(bed.model, chosen.edit, bed.contrasts["test"], **where, **common)
    by_layers, by_directions = path_contributions(study, {by_layer: control, by_direction: control}, None)
    found: dict[str, Contributions] = {
        f"layers_{method}": by_layers if method == "path" else layer_games(study, method, control=control)
        for method in LAYER_METHODS
    }
    found["directions_path"] = described(study, by_directions, captured)
    patching = {method: control for method in HEAD_METHODS if method in PATCHING_METHODS}
    heads: dict[str, Contributions] = dict(patching_contributions(study, patching)) if patching else {}
    if "direct" in HEAD_METHODS:
        heads["direct"] = direct_contributions(study, None, control)
    return found | {f"heads_{method}": heads[method] for method in HEAD_METHODS}


def _best(choices: list[Choice]) -> Choice:
    """The rule; if it admits none, the setting that leaves the most mass."""
    allowed = [choice for choice in choices if choice.allowed]
    if not allowed:
        return max(choices, key=lambda choice: choice.effect.after_mass.mean().item())
    return max(allowed, key=lambda choice: choice.margin)


def _test_measure(bed: Testbed, test: Scorer) -> Callable[[Choice], MethodResult]:
    model = bed.model
    multiple_choice = _multiple_choice_scorer(bed)
    documents = text_scorer(model, bed.documents, batch_size=BATCH_SIZE)
    counts = documents.token_counts.double()

    def read() -> tuple[Float[Tensor, " questions"], Float[Tensor, " questions"], Float[Tensor, " documents"]]:
        choices = rearrange(multiple_choice.log_probs(), "(questions choices) -> questions choices", choices=4)
        correct = torch.zeros_like(choices, dtype=torch.bool)
        correct[:, 0] = True
        # Weighted so that the mean over documents is the loss per token.
        loss = -documents.log_probs() / counts.mean()
        return mc1(choices, correct), mc2(choices, correct), loss

    unedited, before = test.log_probs(), read()

    def measure(choice: Choice) -> MethodResult:
        where = {"layers": choice.options["layers"], "strength": choice.options["strength"]}
        effect = effect_from(test, unedited, model, choice.edit, **where)
        with choice.edit.applied(model, **where):
            after = read()
        # MC1 is right or wrong, so that its changes are −1, 0 or 1.
        kinds = ("difference", "number", "number")
        changes = [
            (b.mean().item(), a.mean().item(), bootstrap((a - b).numpy(), kind=kind))
            for b, a, kind in zip(before, after, kinds, strict=True)
        ]
        return MethodResult(choice.options, effect, *changes)

    return measure


def _multiple_choice_scorer(bed: Testbed) -> Scorer:
    """Truth, myth and two distractors of each test question, in this order."""
    lens = Lens.of(bed.model)
    questions = bed.world.split("test")
    completions = [
        encode_completion(lens, question.prompt(), f" {name}")
        for question in questions
        for name in (question.truth, question.myth, *question.distractors)
    ]
    return Scorer.of(lens, completions, [i // 4 for i in range(len(completions))], BATCH_SIZE)


def _reliable_source(bed: Testbed, unedited: Float[Tensor, " completions"]) -> Effect:
    """What naming a reliable source does to the contrast: the model's own way to the truth, as a ceiling."""
    named = contrasts_of(bed.world.split("test"), RELIABLE_SOURCES[0])
    return effect_between(unedited, contrast_scorer(bed.model, named, batch_size=BATCH_SIZE).log_probs())
