"""Fits on resampled demonstrations, and what is measured under each (docs/method.md 6.12)."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer
from .._support.progress import tracked
from ..edits.where import LayerChoice, Positions, Strength, choose_layers
from ..errors import InputError
from ..measure.effects import effect
from ..models.lens import Lens
from ..models.reading import Reading
from ..spectral.capturing import Captured
from ..spectral.edit import SpectralEdit
from ..spectral.features import FeatureMap, feature_map
from ..spectral.fitting import fit_to_size
from ..spectral.ranks import Energy, Rank, Size
from ..texts.demonstrations import Contrasts, Demonstrations
from ..texts.items import Contrast, Demonstration
from .base import Contributions
from .directions import direction_contributions
from .heads import head_contributions
from .layers import layer_contributions, position_contributions
from .stability_results import Stability

Analysis = Callable[..., Contributions]
ANALYSES: dict[str, Analysis] = {
    "layers": layer_contributions,
    "positions": position_contributions,
    "heads": head_contributions,
}
SCHEMES = ("bootstrap", "jackknife")


def stability(
    model: Any,
    demonstrations: Iterable[Demonstration],
    contrasts: Iterable[Contrast],
    contributions: str | Analysis | None = "layers",
    n: int = 20,
    *,
    scheme: str = "bootstrap",
    method: str | None = None,
    layers: LayerChoice = "all",
    strength: Strength = 1.0,
    combine: str | None = None,
    positions: Positions = "all",
    energy: Energy = 0.998,
    rank: Rank | None = None,
    centre: bool = False,
    spectrum_power: float = 2,
    site: str = "mlp_out",
    position: str = "last",
    neutral: str = "prompt",
    feature: str | FeatureMap = "identity",
    batch_size: int = 16,
    prepend_bos: bool = True,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Stability:
    """Fit anew on resampled demonstrations: how far the effect and what carries it depend on them.

    The source is docs/method.md 6.12. Demonstrations are read once. Each fit is made as the edit was, its ranks chosen
    anew where an energy is given.

    Args:
        model: a TransformerLens model.
        demonstrations: to fit from.
        contrasts: what the effect is measured on.
        contributions: "layers", "positions", "heads", or one of the functions of contributions, such as
            `sl.head_contributions`; None for the effect alone. Directions are refused: their places in two fits name
            different directions.
        n: how many fits.
        scheme: "bootstrap" draws as many demonstrations with replacement; "jackknife" leaves out one n-th at a time.
        method: of the contributions, by default theirs.
        layers, strength, combine, positions: as in `applied`.
        energy, rank, centre, spectrum_power: as in `fit`.
        site, position, neutral, feature: as in `capture`.
        batch_size: texts at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        seed: of the draws, and of the order that is cut for the jackknife.
        progress: show a progress bar.
        options: more for the function of contributions, such as `tolerance`.

    Returns:
        Intervals of effect and contributions over contrasts and demonstrations, and how well rankings agree.

    Raises:
        InputError: fewer than 2 fits, fewer than 2 demonstrations, more parts to leave out than there are, an unknown
            scheme, analysis or option of it, a function that gives no contributions, or directions.
        Otherwise as `capture`, `fit`, `effect` and the function of contributions.
    """
    n, seed = as_integer(n, "n", least=2), as_integer(seed, "seed", least=0)
    batch_size = as_integer(batch_size, "batch_size", least=1)
    if scheme not in SCHEMES:
        raise InputError(f"unknown scheme {scheme!r}: expected one of {', '.join(SCHEMES)}")
    if method is not None:
        options["method"] = method
    if contributions is direction_contributions or contributions == "directions":
        raise InputError(
            "a direction's place in one fit names another direction in the next: expected contributions of layers, "
            "positions or heads"
        )
    analysis = contributions_analysis(contributions, options)
    size, mapped = Size.of(energy, rank, spectrum_power), feature_map(feature)
    demonstrations, contrasts = Demonstrations.of(demonstrations), Contrasts.of(contrasts)
    if len(demonstrations) < 2:
        raise InputError("a single demonstration tells nothing of others: expected at least 2 to fit from anew")
    if scheme == "jackknife" and n > len(demonstrations):
        raise InputError(f"{n} parts to leave out of {len(demonstrations)} demonstrations: expected at most as many")
    lens = Lens.of(model)
    reading = Reading(site, None, position, neutral, prepend_bos, 32, seed)
    chosen = choose_layers("all", range(lens.n_layers))
    captured = Captured.read(model, reading, demonstrations, chosen, batch_size=batch_size, progress=progress)
    edit = fit_to_size(captured.covariance.with_feature(mapped), size, centre)
    common: dict[str, Any] = {"layers": layers, "strength": strength, "combine": combine, "positions": positions}
    common |= {"batch_size": batch_size, "prepend_bos": prepend_bos}

    def measured(one: SpectralEdit) -> tuple[Contributions | None, Float[Tensor, " contrasts"]]:
        if analysis is None:
            return None, effect(model, one, contrasts, **common).items
        found = analysis(model, one, contrasts, **common, **options)
        if not isinstance(found, Contributions):
            raise InputError(f"expected a function that gives contributions, got {type(found).__name__} from it")
        return found, found.item_effects

    found, item_effects = measured(edit)
    effects, values = [], []
    draws = _draws(len(demonstrations), n, scheme, seed)
    for indices in tracked(draws, "fits on resampled demonstrations", n, show=progress):
        again, items = measured(fit_to_size(captured.drawn(indices, mapped), size, centre))
        effects.append(items.mean())
        values.append(torch.zeros(0, dtype=torch.float64) if found is None else _values_at(found, again))
    return Stability(edit, scheme, found, item_effects, torch.stack(effects), torch.stack(values))


def contributions_analysis(contributions: str | Analysis | None, options: Mapping[str, Any]) -> Analysis | None:
    """The function that a name stands for, or that is given; None for the effect alone.

    Raises:
        InputError: there is no such analysis, or it has not got one of the options.
    """
    analysis = ANALYSES.get(contributions) if isinstance(contributions, str) else contributions
    if contributions is not None and not callable(analysis):
        raise InputError(
            f"unknown contributions {contributions!r}: expected one of {', '.join(ANALYSES)}, or a function"
        )
    _check_options(analysis, options)
    return analysis


def _check_options(analysis: Analysis | None, options: Mapping[str, Any]) -> None:
    """Refuse options that the analysis does not take, before anything is read."""
    if analysis is None:
        unknown = sorted(options)
    else:
        parameters = inspect.signature(analysis).parameters
        takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        unknown = [] if takes_all else sorted(set(options) - set(parameters))
    if unknown:
        name = "the effect alone" if analysis is None else getattr(analysis, "__name__", "this function")
        raise InputError(f"{name} has no option {', '.join(unknown)}")


def _values_at(whole: Contributions, again: Contributions | None) -> Float[Tensor, " parts"]:
    """Contributions under another fit by the labels of the whole; a layer that it does not edit contributes 0.

    Layers that are chosen by their signature can be others in each fit.
    """
    assert again is not None
    values = dict(zip(again.labels, again.values.flatten().tolist(), strict=True))
    return torch.tensor([values.get(label, 0.0) for label in whole.labels], dtype=torch.float64)


def _draws(size: int, n: int, scheme: str, seed: int) -> Iterator[Sequence[int]]:
    """Demonstrations of each fit."""
    rng = np.random.default_rng(seed)
    if scheme == "jackknife":
        order = rng.permutation(size)
        yield from (sorted(set(range(size)) - set(part.tolist())) for part in np.array_split(order, n))
        return
    for _ in range(n):
        yield sorted(rng.integers(size, size=size).tolist())
