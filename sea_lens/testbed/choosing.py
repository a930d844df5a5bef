"""Which edit to take, chosen on the dev questions by a stated rule.

`python -m sea_lens.testbed.choosing DIR` writes what is chosen into a folder that `train` wrote, as `chosen.json`.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._support.json_files import write_json
from .._support.progress import tracked
from ..contributions.integral import outside_inference_mode
from ..edits.activation import ActivationEdit
from ..measure.effects import Effect, effect_from
from ..measure.scorer import contrast_scorer, text_scorer
from ..methods.mean_steering import mean_difference
from ..models.lens import Lens
from ..models.reading import Reading
from ..spectral.capturing import Captured
from ..spectral.controls import permuted_fits
from ..spectral.edit import SpectralEdit
from ..spectral.features import feature_map
from ..spectral.fitting import fit
from .bed import CHOSEN, Testbed, load
from .behaviours import Behaviour
from .corpus import documents

SITES = ("mlp_out", "resid_post")
ENERGIES = (0.9999,)
# Around the number of different answers. An energy gives every layer another rank, and uncentred a small one.
RANKS = (4, 8, 16)
CENTRES = (False, True)
LAYERS = ("all", "first-2", "last-2")
STRENGTHS = (1.0, 1.5)
MEAN_DIFFERENCE_STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
MINIMUM_MASS = 0.9
# Nats per token.
LOSS_BUDGET = 0.1
DEV_DRAWS = 4
RULE = (
    "the largest lower end of the effect's 95 % interval on the dev questions, less the mean of its control "
    f"({DEV_DRAWS} fits to shuffled demonstrations; none for steering), among the settings that leave at least "
    f"{MINIMUM_MASS:.0%} of the unedited model's probability mass on the two answers and raise its loss on other "
    f"documents by at most {LOSS_BUDGET} nats per token"
)
# Seed of the shuffles on dev; those on test have others.
DEV_SEED = 1000
DEV_DOCUMENTS = 60
# Texts at a time, for the choice and for the report.
BATCH_SIZE = 256


@dataclass(frozen=True)
class Choice:
    """One point of the grid and what it does on dev.

    Attributes:
        edit: spectral, or mean-difference steering.
        options: how it was fitted and where it acts.
        effect: on the contrasts of dev.
        control: mean effect of fits to shuffled demonstrations in nats, 0 for steering.
        loss: what it adds to the loss on documents, in nats per token.
    """

    edit: ActivationEdit
    options: dict[str, Any]
    effect: Effect
    control: float
    loss: float

    @property
    def margin(self) -> float:
        """Lower end of the effect beyond the control, which the rule asks to be largest."""
        return self.effect.interval.low - self.control

    @property
    def allowed(self) -> bool:
        """Whether the rule admits it."""
        enough = self.effect.after_mass.mean() >= MINIMUM_MASS * self.effect.before_mass.mean()
        return bool(enough) and self.loss <= LOSS_BUDGET

    def row(self) -> dict[str, Any]:
        """Options and dev numbers, for the report."""
        return {
            **self.options,
            "effect": self.effect.effect,
            "control": self.control,
            "margin": self.margin,
            "mass": self.effect.after_mass.mean().item(),
            "loss": self.loss,
            "allowed": self.allowed,
        }


@dataclass(frozen=True)
class Chosen:
    """The edits that the rule chose.

    Attributes:
        edit, options: the spectral edit, how it was fitted and where it acts.
        steering, steering_options: mean-difference steering at its own best.
        captured: the train demonstrations, read at the edit's site.
        grid: options and dev numbers of every spectral edit that was tried.
    """

    edit: SpectralEdit
    options: dict[str, Any]
    steering: ActivationEdit
    steering_options: dict[str, Any]
    captured: Captured
    grid: list[dict[str, Any]]

    @property
    def record(self) -> dict[str, Any]:
        """All but the edits, for a file."""
        return {"options": self.options, "steering_options": self.steering_options, "grid": self.grid}


def where(options: Mapping[str, Any]) -> dict[str, Any]:
    """Layers and strength of some options, as `applied` takes them."""
    return {"layers": options["layers"], "strength": options["strength"]}


@outside_inference_mode
def choose(bed: Testbed, behaviour: Behaviour, *, progress: bool = True) -> Chosen:
    """Try the grid on the dev questions of a behaviour."""
    model = bed.model
    dev = contrast_scorer(model, behaviour.asked("dev"), batch_size=BATCH_SIZE)
    unedited = dev.log_probs()
    # Others than those that are reported on.
    texts = list(itertools.islice(documents(bed.world, bed.peoples, "dev"), DEV_DOCUMENTS))
    documents_dev = text_scorer(model, texts, batch_size=BATCH_SIZE)
    tokens, loss = documents_dev.token_counts.sum().item(), -documents_dev.log_probs().sum().item()
    read = {site: _captured(bed, behaviour, site, progress) for site in SITES}

    def tried(edit: ActivationEdit, options: dict[str, Any], shuffled: Sequence[SpectralEdit] = ()) -> Choice:
        effects = [effect_from(dev, unedited, model, one, **where(options)) for one in (edit, *shuffled)]
        control = sum(one.effect for one in effects[1:]) / max(len(shuffled), 1)
        with edit.applied(model, **where(options)):
            added = (-documents_dev.log_probs().sum().item() - loss) / tokens
        return Choice(edit, options, effects[0], control, added)

    sizes: list[dict[str, Any]] = [*({"energy": energy} for energy in ENERGIES), *({"rank": rank} for rank in RANKS)]
    points = list(itertools.product(read.items(), CENTRES, sizes))
    choices = []
    for (site, captured), centre, size in tracked(points, "choosing on dev", len(points), show=progress):
        options = {"site": site, "centre": centre, "energy": None, "rank": None, **size}
        edit = _fitted(captured, options)
        shuffled = permuted_fits(edit, captured, DEV_DRAWS, DEV_SEED)
        choices += [
            tried(edit, {**options, "layers": layers, "strength": strength}, shuffled)
            for layers, strength in itertools.product(LAYERS, STRENGTHS)
        ]
    steering = _best(
        [
            tried(mean_difference(captured.covariance), {"site": site, "layers": layers, "strength": strength})
            for (site, captured), layers, strength in itertools.product(read.items(), LAYERS, MEAN_DIFFERENCE_STRENGTHS)
        ]
    )
    best = _best(choices)
    assert isinstance(best.edit, SpectralEdit)
    captured, grid = read[best.options["site"]], [choice.row() for choice in choices]
    return Chosen(best.edit, best.options, steering.edit, steering.options, captured, grid)


def as_noted(bed: Testbed, behaviour: Behaviour, record: Mapping[str, Any], *, progress: bool = True) -> Chosen:
    """What `choose` gave when `record` was written, fitted anew without trying the grid."""
    options, steering_options = record["options"], record["steering_options"]
    captured = _captured(bed, behaviour, options["site"], progress)
    other = captured
    if steering_options["site"] != options["site"]:
        other = _captured(bed, behaviour, steering_options["site"], progress)
    edit, steering = _fitted(captured, options), mean_difference(other.covariance)
    return Chosen(edit, options, steering, steering_options, captured, record["grid"])


def _captured(bed: Testbed, behaviour: Behaviour, site: str, progress: bool) -> Captured:
    layers = tuple(range(Lens.of(bed.model).n_layers))
    common: dict[str, Any] = {"batch_size": BATCH_SIZE, "progress": progress}
    return Captured.read(bed.model, Reading(site), behaviour.demonstrations, layers, **common)


def _fitted(captured: Captured, options: Mapping[str, Any]) -> SpectralEdit:
    size = {name: options[name] for name in ("energy", "rank") if options[name] is not None}
    covariance = captured.drawn(range(len(captured.demonstrations)), feature_map("identity"))
    return fit(covariance, centre=options["centre"], **size)


def _best(choices: list[Choice]) -> Choice:
    """The rule; if it admits none, the setting that leaves the most mass."""
    allowed = [choice for choice in choices if choice.allowed]
    if not allowed:
        return max(choices, key=lambda choice: choice.effect.after_mass.mean().item())
    return max(allowed, key=lambda choice: choice.margin)


def main() -> None:
    """Choose for both behaviours and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="that sea_lens.testbed.train wrote")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bed = load(path=arguments.folder)
    chosen = {name: choose(bed, one).record for name, one in bed.behaviours.items()}
    write_json(arguments.folder / CHOSEN, {"rule": RULE, "behaviours": chosen})
    for name, record in chosen.items():
        print(f"{name}: {record['options']}")


if __name__ == "__main__":
    main()
