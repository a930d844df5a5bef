"""Every method on the shipped model: effect, side effects and cost, each at its own best and all at one divergence.

    python analyses/methods.py [--behaviour truth] [--testbed DIR] [--out DIR]

Where and how strongly a method acts is chosen on the dev questions: the largest lower end of the effect's 95 % interval
among settings that leave at least 90 % of the unedited model's probability on the two answers, and raise the loss on
other documents by at most 0.1 nats per token. For the spectral edit the choice is that of `sea-lens demo`, which looks
at fits to shuffled demonstrations too. What is chosen is measured on the test questions once. For the second table each
method's strength is changed, layers as before, until the KL divergence from the unedited model on held-out documents is
that of the spectral edit at its own best. The row of a method is empty where no strength up to 64 reaches that
divergence; a method of which no setting is within the budgets has none.

Few-shot prompting has no strength, so it is in the first table alone. Naming a source of wanted answers changes the
question and not the model; it is shown beside, without a divergence.

Costs: seconds to fit one candidate, and how many times longer the test questions take than without an edit.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy.optimize import root_scalar

import sea_lens as sl
from sea_lens.evaluation.perplexity import Perplexity
from sea_lens.measure.effects import effect_between, effect_from
from sea_lens.measure.scorer import contrast_scorer
from sea_lens.spectral.controls import permuted_fits
from sea_lens.testbed import PATH
from sea_lens.testbed.behaviours import BEHAVIOURS, Behaviour
from sea_lens.testbed.choosing import BATCH_SIZE, LAYERS, LOSS_BUDGET, MINIMUM_MASS, SITES, as_noted
from sea_lens.testbed.choosing import where as acting
from sea_lens.testbed.demo import CONTROL_DRAWS, RANDOM_DRAWS

# Of the strength that has a divergence.
TOLERANCE = 1e-3
# Documents that side effects are measured on.
N_DOCUMENTS = 100


@dataclass(frozen=True)
class Method:
    """A method as it is tried.

    Attributes:
        fit: makes the candidates, by name.
        layers, strengths: where and how strongly each is tried.
        graded: whether it has strengths between nothing and all.
    """

    fit: Callable[[], dict[str, Any]]
    layers: tuple[str, ...] = LAYERS
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    graded: bool = True


def methods(bed: sl.testbed.Testbed, behaviour: Behaviour) -> dict[str, Method]:
    """What is compared with the spectral edit."""
    model, demonstrations = bed.model, behaviour.demonstrations

    def steering() -> dict[str, Any]:
        read = sl.capture(model, demonstrations, list(SITES), batch_size=BATCH_SIZE, progress=False)
        return {site: sl.mean_difference(one) for site, one in read.items()}

    def heads() -> dict[str, Any]:
        return {
            f"{k} heads, {direction}": sl.iti(model, demonstrations, heads=k, direction=direction, progress=False)
            for k, direction in itertools.product((4, 8, 16), ("mass_mean", "probe"))
        }

    def examples() -> dict[str, Any]:
        # A document holds a few questions.
        return {f"{n} examples": sl.in_context(model, demonstrations, n, " . ") for n in (1, 2)}

    def adapters() -> dict[str, Any]:
        return {
            f"rank 8, {epochs} epochs": sl.lora(
                model, demonstrations, epochs=epochs, learning_rate=1e-3, progress=False
            )
            for epochs in (1, 3, 10)
        }

    return {
        "mean difference": Method(steering),
        "ITI": Method(heads, ("all",), (1.0, 2.0, 5.0, 10.0, 15.0)),
        "LEACE": Method(lambda: {"": sl.leace(model, demonstrations, progress=False)}, strengths=(0.5, 1.0, 1.5)),
        "DoLa": Method(lambda: {"": sl.dola(model, relative_top=0)}, ("all",), (0.1, 0.25, 0.5, 1.0)),
        "few-shot prompting": Method(examples, ("all",), (1.0,), graded=False),
        "LoRA": Method(adapters, ("all",), (0.5, 1.0)),
    }


class Measure:
    """Effects on the splits, and side effects on the held-out documents."""

    def __init__(self, bed: sl.testbed.Testbed, behaviour: Behaviour) -> None:
        self.bed, self.behaviour = bed, behaviour
        benchmark = Perplexity()
        items = benchmark.read("held-out documents", enumerate(bed.documents[:N_DOCUMENTS], start=1))
        self.documents = sl.Task(benchmark, "held-out documents", tuple(items), None)
        self.unedited = self.side_effects(None)
        self.scorers = {
            split: contrast_scorer(bed.model, behaviour.asked(split), batch_size=BATCH_SIZE)
            for split in ("dev", "test")
        }
        self.log_probs = {split: scorer.log_probs() for split, scorer in self.scorers.items()}
        start = time.perf_counter()
        self.scorers["test"].log_probs()
        self.seconds = time.perf_counter() - start

    def effect(self, split: str, edit: Any, **where: Any) -> sl.Effect:
        """The effect on a split's questions."""
        return effect_from(self.scorers[split], self.log_probs[split], self.bed.model, edit, **where)

    def side_effects(self, edit: Any, **where: Any) -> sl.Evaluation:
        """Loss and divergence on the held-out documents."""
        return sl.evaluate(self.bed.model, self.documents, edit=edit, **where, batch_size=BATCH_SIZE, progress=False)

    def row(self, edit: Any, where: dict[str, Any]) -> dict[str, Any]:
        """Everything about one setting, on test."""
        start = time.perf_counter()
        effect = self.effect("test", edit, **where)
        seconds = time.perf_counter() - start
        side = sl.compare(self.unedited, self.side_effects(edit, **where))
        return {
            "effect": effect.effect,
            "low": effect.interval.low,
            "high": effect.interval.high,
            "mass": effect.after_mass.mean().item(),
            "kl": side.after.scores["kl"],
            "loss change": side.intervals["loss"].mean,
            "time": seconds / self.seconds,
        }


def chosen_on_dev(
    candidates: dict[str, Any], method: Method, measure: Measure
) -> tuple[Any, str, dict[str, Any]] | None:
    """The best setting of a method: its edit, its name, and where it acts; None where none is within the budgets."""
    best: tuple[float, Any, str, dict[str, Any]] | None = None
    for (name, edit), layers, strength in itertools.product(candidates.items(), method.layers, method.strengths):
        where = {"layers": layers, "strength": strength}
        effect = measure.effect("dev", edit, **where)
        if effect.after_mass.mean() < MINIMUM_MASS * effect.before_mass.mean():
            continue
        low = effect.interval.low
        if best is not None and low <= best[0]:
            continue
        # Examples in front are no document, and change the next one's loss whatever they say.
        loss = measure.side_effects(edit, **where).scores["loss"] - measure.unedited.scores["loss"]
        if loss <= LOSS_BUDGET or not method.graded:
            best = low, edit, f"{name} {layers}, strength {strength:g}".strip(), where
    return None if best is None else best[1:]


def strength_of_divergence(edit: Any, layers: str, target: float, measure: Measure) -> float | None:
    """The strength at which the divergence is the target, None where none up to 64 has it."""
    low, high = 0.0, 0.25
    while measure.side_effects(edit, layers=layers, strength=high).scores["kl"] < target:
        low, high = high, 2 * high
        if high > 64:
            return None

    def beyond(strength: float) -> float:
        return measure.side_effects(edit, layers=layers, strength=strength).scores["kl"] - target

    return root_scalar(beyond, bracket=(low, high), rtol=TOLERANCE).root


def named_source(measure: Measure) -> dict[str, Any]:
    """What naming a source of wanted answers in the question does."""
    source = measure.behaviour.source
    asked = measure.behaviour.asked("test", source)
    named = contrast_scorer(measure.bed.model, asked, batch_size=BATCH_SIZE).log_probs()
    change = effect_between(measure.log_probs["test"], named)
    return {
        "method": f"naming a {source}",
        "effect": change.effect,
        "low": change.interval.low,
        "high": change.interval.high,
        "mass": change.after_mass.mean().item(),
    }


def main() -> None:
    """Choose, measure, print and write both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--behaviour", choices=BEHAVIOURS, default=BEHAVIOURS[0])
    parser.add_argument("--testbed", type=Path, default=PATH, help="folder that sea_lens.testbed.train wrote")
    parser.add_argument("--out", type=Path, default=None, help="folder for methods.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bed = sl.testbed.load(path=arguments.testbed)
    behaviour = bed.behaviours[arguments.behaviour]
    measure = Measure(bed, behaviour)
    tried = methods(bed, behaviour)

    start = time.perf_counter()
    chosen = as_noted(bed, behaviour, bed.chosen[behaviour.name], progress=False)
    seconds = time.perf_counter() - start
    settings: dict[str, Any] = {"spectral": (chosen.edit, acting(chosen.options))}
    name = ", ".join(f"{key} {value}" for key, value in chosen.options.items() if value is not None)
    best = [{"method": "spectral", "setting": name, **measure.row(*settings["spectral"]), "fit seconds": seconds}]
    shuffled = permuted_fits(chosen.edit, chosen.captured, CONTROL_DRAWS)
    draws = [sl.randomised(chosen.edit, seed) for seed in range(RANDOM_DRAWS)]
    for control, edits in (("shuffled demonstrations", shuffled), ("random subspaces", draws)):
        rows = pd.DataFrame([measure.row(edit, settings["spectral"][1]) for edit in edits])
        spread = {"low": rows["effect"].min(), "high": rows["effect"].max()}
        best.append({"method": control, "setting": f"{len(edits)} draws", **rows.mean().to_dict(), **spread})
    for name, method in tried.items():
        start = time.perf_counter()
        candidates = method.fit()
        seconds = (time.perf_counter() - start) / len(candidates)
        chosen_setting = chosen_on_dev(candidates, method, measure)
        if chosen_setting is None:
            best.append({"method": name, "setting": "none is within the budgets", "fit seconds": seconds})
            continue
        edit, setting, where = chosen_setting
        settings[name] = edit, where
        best.append({"method": name, "setting": setting, **measure.row(edit, where), "fit seconds": seconds})
    best.append(named_source(measure))

    target, matched = best[0]["kl"], []
    for name, (edit, where) in settings.items():
        graded = name not in tried or tried[name].graded
        strength = strength_of_divergence(edit, where["layers"], target, measure) if graded else None
        row = {} if strength is None else measure.row(edit, {**where, "strength": strength})
        matched.append({"method": name, "strength": strength, **row})

    tables = {"each at its own best": pd.DataFrame(best), f"all at a divergence of {target:.4f}": pd.DataFrame(matched)}
    for title, table in tables.items():
        print(f"\n{title}")
        print(table.to_string(index=False, float_format=lambda x: f"{x:.4f}", na_rep=""))
    print("\nEffects in nats, kl and loss change in nats a token; time is that of the test questions, unedited 1.")
    print("An empty row: no strength up to 64 reaches the divergence.")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        content = {title: table.to_dict("records") for title, table in tables.items()}
        (arguments.out / "methods.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
