"""Every method on the shipped model: effect, side effects and cost, each at its own best and all at one divergence.

    python analyses/methods.py [--testbed DIR] [--out DIR]

Where and how strongly a method acts is chosen on the dev questions by the rule of `sea-lens demo`: the largest lower
end of the effect's 95 % interval, for a spectral edit less the mean effect of random subspaces of its ranks, among
settings that leave at least 90 % of the unedited model's probability on the two answers. What is chosen is measured on
the test questions once. For the second table each method's strength is changed, layers as before, until the KL
divergence from the unedited model on held-out documents is that of the spectral edit at its own best. The row of a
method is empty where no strength up to 64 reaches that divergence.

Few-shot prompting has no strength, so it is in the first table alone. Naming a reliable source changes the question and
not the model; it is shown beside, without a divergence.

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

import sea_lens as sl
from sea_lens.evaluation.perplexity import Perplexity
from sea_lens.measure.effects import effect_between, effect_from
from sea_lens.measure.scorer import contrast_scorer
from sea_lens.testbed import PATH
from sea_lens.testbed.bed import contrasts_of
from sea_lens.testbed.demo import BATCH_SIZE, CENTRES, DEV_DRAWS, ENERGIES, LAYERS, MINIMUM_MASS, RANDOM_DRAWS, RANKS
from sea_lens.testbed.world import RELIABLE_SOURCES

BISECTIONS = 12


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


def methods(bed: sl.testbed.Testbed) -> dict[str, Method]:
    """What is compared."""

    def capture() -> sl.CrossCovariance:
        return sl.capture(bed.model, bed.demonstrations, batch_size=BATCH_SIZE, progress=False)

    def spectral() -> dict[str, Any]:
        covariance = capture()
        sizes: list[dict[str, Any]] = [*({"energy": energy} for energy in ENERGIES), *({"rank": k} for k in RANKS)]
        return {
            f"{'centred' if centre else 'uncentred'} {size}": sl.fit(covariance, centre=centre, **size)
            for centre, size in itertools.product(CENTRES, sizes)
        }

    def heads() -> dict[str, Any]:
        return {
            f"{k} heads, {direction}": sl.iti(
                bed.model, bed.demonstrations, heads=k, direction=direction, progress=False
            )
            for k, direction in itertools.product((4, 8, 16), ("mass_mean", "probe"))
        }

    def examples() -> dict[str, Any]:
        # A document holds at most five questions.
        return {f"{n} examples": sl.in_context(bed.model, bed.demonstrations, n, " . ") for n in (1, 2, 4)}

    def adapters() -> dict[str, Any]:
        return {
            f"rank 8, {epochs} epochs": sl.lora(
                bed.model, bed.demonstrations, epochs=epochs, learning_rate=1e-3, progress=False
            )
            for epochs in (1, 3, 10)
        }

    return {
        "spectral": Method(spectral, strengths=(0.5, 1.0, 1.5)),
        "mean difference": Method(lambda: {"": sl.mean_difference(capture())}),
        "ITI": Method(heads, ("all",), (1.0, 2.0, 5.0, 10.0, 15.0)),
        "LEACE": Method(
            lambda: {"": sl.leace(bed.model, bed.demonstrations, progress=False)}, strengths=(0.5, 1.0, 1.5)
        ),
        "DoLa": Method(lambda: {"": sl.dola(bed.model, relative_top=0)}, ("all",), (0.1, 0.25, 0.5, 1.0)),
        "few-shot prompting": Method(examples, ("all",), (1.0,), graded=False),
        "LoRA": Method(adapters, ("all",), (0.5, 1.0)),
    }


class Measure:
    """Effects on the splits, and side effects on the held-out documents."""

    def __init__(self, bed: sl.testbed.Testbed) -> None:
        self.bed = bed
        benchmark = Perplexity()
        items = benchmark.read("held-out documents", enumerate(bed.documents, start=1))
        self.documents = sl.Task(benchmark, "held-out documents", tuple(items), None)
        self.unedited = self.side_effects(None)
        self.scorers = {
            split: contrast_scorer(bed.model, bed.contrasts[split], batch_size=BATCH_SIZE) for split in ("dev", "test")
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

    def row(self, edit: Any, **where: Any) -> dict[str, Any]:
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


def chosen_on_dev(candidates: dict[str, Any], method: Method, measure: Measure) -> tuple[Any, str, dict[str, Any]]:
    """The best setting of a method: its edit, its name, and where it acts."""
    best: tuple[float, Any, str, dict[str, Any]] | None = None
    for (name, edit), layers, strength in itertools.product(candidates.items(), method.layers, method.strengths):
        where = {"layers": layers, "strength": strength}
        effect = measure.effect("dev", edit, **where)
        allowed = effect.after_mass.mean() >= MINIMUM_MASS * effect.before_mass.mean()
        control = 0.0
        if isinstance(edit, sl.SpectralEdit):
            draws = [measure.effect("dev", sl.randomised(edit, 1000 + seed), **where) for seed in range(DEV_DRAWS)]
            control = sum(draw.effect for draw in draws) / DEV_DRAWS
        margin = effect.interval.low - control
        if allowed and (best is None or margin > best[0]):
            best = margin, edit, f"{name} {layers}, strength {strength:g}".strip(), where
    assert best is not None, "no setting leaves enough probability on the answers"
    return best[1:]


def strength_of_divergence(edit: Any, layers: str, target: float, measure: Measure) -> float | None:
    """The strength at which the divergence is the target, None where none up to 64 has it."""
    low, high = 0.0, 0.25
    while measure.side_effects(edit, layers=layers, strength=high).scores["kl"] < target:
        low, high = high, 2 * high
        if high > 64:
            return None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if measure.side_effects(edit, layers=layers, strength=middle).scores["kl"] < target:
            low = middle
        else:
            high = middle
    return high


def named_source(measure: Measure) -> dict[str, Any]:
    """What naming a reliable source in the question does."""
    bed = measure.bed
    asked = contrasts_of(bed.world.split("test"), RELIABLE_SOURCES[0])
    named = contrast_scorer(bed.model, asked, batch_size=BATCH_SIZE).log_probs()
    change = effect_between(measure.log_probs["test"], named)
    return {
        "method": "naming a reliable source",
        "effect": change.effect,
        "low": change.interval.low,
        "high": change.interval.high,
        "mass": change.after_mass.mean().item(),
    }


def main() -> None:
    """Choose, measure, print and write both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--testbed", type=Path, default=PATH, help="folder that sea_lens.testbed.train wrote")
    parser.add_argument("--out", type=Path, default=None, help="folder for methods.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bed = sl.testbed.load(path=arguments.testbed)
    measure = Measure(bed)
    best, matched, settings = [], [], {}
    tried = methods(bed)
    for name, method in tried.items():
        start = time.perf_counter()
        candidates = method.fit()
        seconds = (time.perf_counter() - start) / len(candidates)
        edit, setting, where = chosen_on_dev(candidates, method, measure)
        settings[name] = edit, where
        best.append({"method": name, "setting": setting, **measure.row(edit, **where), "fit seconds": seconds})
    edit, where = settings["spectral"]
    draws = pd.DataFrame([measure.row(sl.randomised(edit, seed), **where) for seed in range(RANDOM_DRAWS)])
    best.append(
        {"method": f"random, {RANDOM_DRAWS} draws", "setting": "ranks of spectral", **draws.mean().to_dict(),
         "low": draws["effect"].min(), "high": draws["effect"].max()}
    )  # fmt: skip
    best.append(named_source(measure))

    target = best[0]["kl"]
    for name, (edit, where) in settings.items():
        strength = strength_of_divergence(edit, where["layers"], target, measure) if tried[name].graded else None
        row = {} if strength is None else measure.row(edit, layers=where["layers"], strength=strength)
        matched.append({"method": name, "strength": strength, **row})

    tables = {"each at its own best": pd.DataFrame(best), f"all at a divergence of {target:.4f}": pd.DataFrame(matched)}
    for title, table in tables.items():
        print(f"\n{title}")
        print(table.to_string(index=False, float_format=lambda x: f"{x:.4f}", na_rep=""))
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        content = {title: table.to_dict("records") for title, table in tables.items()}
        (arguments.out / "methods.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
