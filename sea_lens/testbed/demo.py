"""The main job on the shipped model, from capture to a report: what `sea-lens demo` runs.

Options were chosen on the dev questions by a stated rule (`choosing`), and the test questions are looked at once.
"""

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
from ..models.lens import Lens
from ..models.tokens import encode_completion
from ..spectral.controls import permuted_fits, randomised
from ..spectral.edit import SpectralEdit
from .answers import greedy_answers
from .bed import Testbed
from .behaviours import Behaviour
from .choosing import BATCH_SIZE, Chosen, as_noted, choose, where

LAYER_METHODS = ("path", "shapley", "leave_one_out", "only_one")
HEAD_METHODS = ("direct", "sufficiency", "necessity", "gradient")
RANDOM_DRAWS = 20
# Fits to shuffled demonstrations beside the effect and every contribution: with 19, p-values reach 0.05.
CONTROL_DRAWS = 19


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
    """Everything that the demo measured of one behaviour.

    Attributes:
        behaviour: which.
        edit: the spectral edit that was chosen on dev.
        grid: options and dev numbers of every spectral edit that was tried.
        spectral: what the chosen edit does on test.
        steering: what mean-difference steering does on test, at its own best on dev.
        random_effects: effects on test of random subspaces of the edit's ranks, in nats. They disturb the model more
            than an edit does.
        named_source: what naming a source of wanted answers in the question does to the contrasts of test.
        contributions: of layers, directions and heads to the effect on test, by name, such as "layers_path".
        answers: every test question with the greedy answers before and after the edit.
    """

    behaviour: Behaviour
    edit: SpectralEdit
    grid: list[dict[str, Any]]
    spectral: MethodResult
    steering: MethodResult
    random_effects: list[float]
    named_source: Effect
    contributions: dict[str, Contributions]
    answers: list[dict[str, str]]


@outside_inference_mode
def run_demo(bed: Testbed, name: str = "truth", *, anew: bool = False, progress: bool = True) -> DemoResult:
    """Capture, fit and report on test, of the behaviour of this name; the same numbers every time.

    Args:
        bed: the model with its worlds.
        name: of the behaviour.
        anew: choose the options on dev anew, even if the testbed has noted what was chosen.
        progress: show progress bars.
    """
    model, behaviour, record = bed.model, bed.behaviours[name], bed.chosen.get(name)
    if record is None or anew:
        chosen = choose(bed, behaviour, progress=progress)
    else:
        chosen = as_noted(bed, behaviour, record, progress=progress)
    acting = where(chosen.options)
    # Whoever takes it from here applies it as it was chosen.
    edit = chosen.edit.with_defaults(**acting)

    test = contrast_scorer(model, behaviour.asked("test"), batch_size=BATCH_SIZE)
    measure = _test_measure(bed, behaviour, test)
    test_unedited = test.log_probs()
    draws = range(RANDOM_DRAWS)
    random_effects = [
        effect_from(test, test_unedited, model, randomised(edit, seed), **acting).effect
        for seed in tracked(draws, "random subspaces", RANDOM_DRAWS, show=progress)
    ]
    control = permuted_fits(edit, chosen.captured, CONTROL_DRAWS, progress=progress)
    on_test = measure(edit, chosen.options)
    beside = [effect_from(test, test_unedited, model, one, **acting).effect for one in control]
    return DemoResult(
        behaviour=behaviour,
        edit=edit,
        grid=chosen.grid,
        spectral=replace(
            on_test, effect=replace(on_test.effect, control_effects=torch.tensor(beside, dtype=torch.float64))
        ),
        steering=measure(chosen.steering, chosen.steering_options),
        random_effects=random_effects,
        named_source=_named_source(model, behaviour, test_unedited),
        contributions=_contributions(model, behaviour, chosen, control, progress),
        answers=greedy_answers(model, behaviour, edit, acting, BATCH_SIZE),
    )


def _contributions(
    model: Any,
    behaviour: Behaviour,
    chosen: Chosen,
    control: Sequence[SpectralEdit],
    progress: bool,
) -> dict[str, Contributions]:
    """What carries the effect of the chosen edit on test, beside the same analyses of its controls."""
    common: dict[str, Any] = {"batch_size": BATCH_SIZE, "progress": progress}
    # One study, so that what several analyses need of the edit and of each control is run once.
    study = Study.of(model, chosen.edit, behaviour.asked("test"), **where(chosen.options), **common)
    by_layers, by_directions = path_contributions(study, {by_layer: control, by_direction(study): control}, None)
    found: dict[str, Contributions] = {
        f"layers_{method}": by_layers if method == "path" else layer_games(study, method, control=control)
        for method in LAYER_METHODS
    }
    found["directions_path"] = described(study, by_directions, chosen.captured)
    patching = {method: control for method in HEAD_METHODS if method in PATCHING_METHODS}
    heads: dict[str, Contributions] = dict(patching_contributions(study, patching)) if patching else {}
    if "direct" in HEAD_METHODS:
        heads["direct"] = direct_contributions(study, None, control)
    return found | {f"heads_{method}": heads[method] for method in HEAD_METHODS}


def _test_measure(
    bed: Testbed, behaviour: Behaviour, test: Scorer
) -> Callable[[ActivationEdit, dict[str, Any]], MethodResult]:
    model = bed.model
    multiple_choice = _multiple_choice_scorer(model, behaviour)
    documents = text_scorer(model, bed.documents, batch_size=BATCH_SIZE)
    counts = documents.token_counts.double()

    n = len(behaviour.items["test"])

    def read() -> tuple[Float[Tensor, " items"], Float[Tensor, " items"], Float[Tensor, " documents"]]:
        choices = rearrange(multiple_choice.log_probs(), "(items answers) -> items answers", items=n)
        correct = torch.zeros_like(choices, dtype=torch.bool)
        correct[:, 0] = True
        # Weighted so that the mean over documents is the loss per token.
        loss = -documents.log_probs() / counts.mean()
        return mc1(choices, correct), mc2(choices, correct), loss

    unedited, before = test.log_probs(), read()

    def measure(edit: ActivationEdit, options: dict[str, Any]) -> MethodResult:
        effect = effect_from(test, unedited, model, edit, **where(options))
        with edit.applied(model, **where(options)):
            after = read()
        # MC1 is right or wrong, so that its changes are −1, 0 or 1.
        kinds = ("difference", "number", "number")
        changes = [
            (b.mean().item(), a.mean().item(), bootstrap((a - b).numpy(), kind=kind))
            for b, a, kind in zip(before, after, kinds, strict=True)
        ]
        return MethodResult(options, effect, *changes)

    return measure


def _multiple_choice_scorer(model: Any, behaviour: Behaviour) -> Scorer:
    """All answers of each test item, the wanted one first."""
    lens, asked, items = Lens.of(model), [], []
    for number, item in enumerate(behaviour.items["test"]):
        asked += [encode_completion(lens, item.prompt(), f" {answer}") for answer in item.answers]
        items += [number] * len(item.answers)
    return Scorer.of(lens, asked, items, BATCH_SIZE)


def _named_source(model: Any, behaviour: Behaviour, unedited: Float[Tensor, " completions"]) -> Effect:
    """What naming a source does to the contrast: the model's own way to the wanted answer, as a ceiling."""
    named = behaviour.asked("test", behaviour.source)
    return effect_between(unedited, contrast_scorer(model, named, batch_size=BATCH_SIZE).log_probs())
