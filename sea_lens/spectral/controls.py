"""Controls of a spectral edit (docs/method.md 6.8): random subspaces of its ranks, and fits to shuffled texts."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .._support.arguments import as_integer
from .._support.progress import tracked
from ..edits.base import Edit
from ..errors import InputError, SeaLensWarning
from ..models.reading import Reading
from ..texts.demonstrations import Demonstrations
from ..texts.items import Demonstration
from .capturing import Captured
from .edit import SpectralEdit, with_subspaces
from .fitting import fit
from .subspaces import random_subspaces


def randomised(edit: SpectralEdit, seed: int) -> SpectralEdit:
    """The edit with subspaces of the same ranks in uniformly random directions (docs/method.md 6.8).

    An edit of high rank moves a choice between two answers by blurring it; this control shows how much of an effect
    any subspaces of these ranks would have. Everything else (centre, feature, ranks of each layer) is the edit's own.

    Args:
        edit: any spectral edit.
        seed: of the draw; the same seed gives the same subspaces.

    Raises:
        InputError: it is no spectral edit.

    Example:
        >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
        >>> control = sl.randomised(edit, seed=0)
        >>> control.ranks == edit.ranks
        True
    """
    _refuse_other_edits(edit, "randomised")
    generator = torch.Generator().manual_seed(as_integer(seed, "seed"))
    drawn = {layer: random_subspaces(edit.subspaces[layer], generator) for layer in edit.layers}
    return with_subspaces(edit, drawn, f"random subspaces, seed {seed}")


def permuted(
    model: Any,
    edit: SpectralEdit,
    demonstrations: Iterable[Demonstration],
    draws: int = 8,
    seed: int = 0,
    *,
    batch_size: int = 16,
    progress: bool = False,
) -> list[SpectralEdit]:
    """The edit fitted anew with positives and negatives shuffled: what an analysis shows where there is nothing to see.

    In each draw the positive and the negative text of every demonstration are swapped by the toss of a coin, and the
    edit is fitted anew at its own ranks (docs/method.md 6.8). The demonstrations are read as the edit's were, once for
    all draws.

    Args:
        model: the model that the edit was fitted on.
        edit: an edit from `capture` and `fit`.
        demonstrations: those that it was fitted from.
        draws: how many edits to return.
        seed: of the tosses.
        batch_size: demonstrations at a time.
        progress: show a progress bar.

    Returns:
        The edits. Memory: three float64 activations of every demonstration at every edited layer.

    Raises:
        InputError: it is no spectral edit, or was not fitted from captured activations.
        Otherwise as `capture`.

    Warns:
        UserWarning: the edit was fitted from other demonstrations, so that a rank among these is no p-value.
    """
    draws, seed = as_integer(draws, "draws", least=0), as_integer(seed, "seed")
    batch_size = as_integer(batch_size, "batch_size", least=1)
    _refuse_other_edits(edit, "permuted")
    Reading.recorded(edit.site, edit.provenance)
    if draws == 0:
        return []
    captured = Captured.of(model, edit, demonstrations, batch_size=batch_size, progress=progress)
    return permuted_fits(edit, captured, draws, seed, progress=progress)


def permuted_fits(
    edit: SpectralEdit, captured: Captured, draws: int = 8, seed: int = 0, *, progress: bool = False
) -> list[SpectralEdit]:
    """`permuted` for demonstrations that have been read already."""
    if draws and not _fitted_from(edit, captured.demonstrations):
        warnings.warn(
            f"the edit was not fitted from these {len(captured.demonstrations)} demonstrations: fits to them with "
            f"labels shuffled are no draws like it, and its rank among them is no p-value",
            SeaLensWarning,
            stacklevel=3,
        )
    centre, power = edit.options["centre"], edit.options["spectrum_power"]
    edits = []
    for draw in tracked(range(draws), "permutation control", draws, show=progress):
        covariance = captured.shuffled(seed * draws + draw, edit.feature)
        refitted = fit(covariance, rank=edit.ranks, centre=centre, spectrum_power=power)
        # What was chosen for the edit holds for what stands in its place.
        refitted = replace(refitted, defaults=edit.defaults)
        edits.append(with_subspaces(refitted, refitted.subspaces, f"positives and negatives shuffled, draw {draw}"))
    return edits


def resampled(
    model: Any,
    edit: SpectralEdit,
    demonstrations: Iterable[Demonstration],
    draws: int = 8,
    seed: int = 0,
    *,
    batch_size: int = 16,
    progress: bool = False,
) -> list[SpectralEdit]:
    """The edit fitted anew to demonstrations drawn with replacement: how far its subspaces depend on them.

    Each is fitted at the edit's own ranks (docs/method.md 6.12); `sl.geometry` tells the angles between them, and
    `sl.stability` what they do. Arguments and errors as in `permuted`; the demonstrations are read once.
    """
    draws, seed = as_integer(draws, "draws", least=0), as_integer(seed, "seed", least=0)
    batch_size = as_integer(batch_size, "batch_size", least=1)
    _refuse_other_edits(edit, "resampled")
    captured = Captured.of(model, edit, demonstrations, batch_size=batch_size, progress=progress)
    centre, power = edit.options["centre"], edit.options["spectrum_power"]
    rng, n = np.random.default_rng(seed), len(captured.demonstrations)
    edits = []
    for _ in tracked(range(draws), "fits on resampled demonstrations", draws, show=progress):
        covariance = captured.drawn(sorted(rng.integers(n, size=n).tolist()), edit.feature)
        fitted = fit(covariance, rank=edit.ranks, centre=centre, spectrum_power=power)
        edits.append(replace(fitted, defaults=edit.defaults))
    return edits


def has_other_digest(edit: Edit, demonstrations: Demonstrations) -> bool:
    """Whether an edit knows that it was fitted from others than these, or from these in another order.

    False where it does not know: of an edit without provenance, and of one that was fitted from several parts.
    """
    sources = edit.provenance.get("demonstrations") if isinstance(edit, SpectralEdit) else None
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], Mapping):
        return False
    known = sources[0].get("sha256")
    return known is not None and known != demonstrations.digest


def _refuse_other_edits(edit: Any, what: str) -> None:
    if not isinstance(edit, SpectralEdit):
        raise InputError(f"{what} needs a spectral edit, whose subspaces it makes anew, got {type(edit).__name__}")


def _fitted_from(edit: SpectralEdit, demonstrations: Demonstrations) -> bool:
    """Whether these are the demonstrations that an edit was fitted from, in any order, as far as it can tell."""
    sources = edit.provenance.get("demonstrations")
    if not isinstance(sources, list) or not sources or not all(isinstance(one, Mapping) for one in sources):
        return True
    if [one.get("sha256") for one in sources] == [demonstrations.digest]:
        return True
    # Of merged parts and of an other order only the number and the questions can be compared.
    known = len(sources) > 1 or "questions" not in sources[0]
    same = known or sources[0]["questions"] == demonstrations.record["questions"]
    return same and sum(one.get("n", 0) for one in sources) == len(demonstrations)
