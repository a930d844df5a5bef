"""Fitting a spectral edit, from captured cross-covariances or from activations (SEA.md section 2)."""

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat, SupportsIndex, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer, as_number
from .._support.versions import versions
from ..errors import ActivationError, InputError, MismatchError
from ..models.sites import Site, unit_keys
from .covariance import CrossCovariance
from .edit import SpectralEdit
from .features import FeatureMap, feature_map
from .subspaces import Subspaces, leading_subspace

# A pair may come as any sequence; its length is checked with the values.
Energy: TypeAlias = SupportsFloat | Sequence[SupportsFloat]
Rank: TypeAlias = SupportsIndex | Sequence[SupportsIndex] | Mapping[Any, Sequence[SupportsIndex]]


def fit(
    covariance: CrossCovariance,
    energy: Energy = 0.998,
    rank: Rank | None = None,
    centre: bool = False,
    spectrum_power: SupportsFloat = 2,
) -> SpectralEdit:
    """Fit a spectral edit from captured cross-covariances (SEA.md section 2).

    Args:
        covariance: from `capture`.
        energy: share K of spectral energy that the kept and the dropped subspace must reach, each in (0, 1]; one
            number or a pair (K⁺, K⁻). Uncentred, the first direction is close to the mean activation and takes most
            of the energy, so compare ranks between models, not energies.
        rank: (k⁺, k⁻) instead of an energy, or one number for both; or a pair for each layer, as `SpectralEdit.ranks`
            gives them.
        centre: subtract the sample mean of each of the three sets, after φ, and edit about the neutral mean.
        spectrum_power: the power of the singular values that counts as energy; 2 as the release.

    Returns:
        The edit, for every layer captured.

    Raises:
        InputError: energy outside (0, 1], a rank outside 0 to d, a power that is not positive.
        ActivationError: no demonstrations, or a cross-covariance that is zero.
    """
    check_fit_options(energy, rank, spectrum_power, covariance.d)
    ranks = None if rank is None else _ranks_of_layers(rank, covariance)
    energies = _energies(energy)
    power, centre = as_number(spectrum_power, "spectrum_power"), bool(centre)
    if covariance.n == 0:
        raise ActivationError("no demonstrations to fit from")

    subspaces: dict[int, Subspaces] = {}
    for layer in covariance.layers:
        sides = []
        for side, omega in enumerate(covariance.omega(layer, centre=centre)):
            side_energy = energies[side] if ranks is None else None
            side_rank = None if ranks is None else torch.tensor([pair[side] for pair in ranks[layer]])
            try:
                sides.append(leading_subspace(omega, energy=side_energy, rank=side_rank, spectrum_power=power))
            except ActivationError as error:
                raise ActivationError(f"layer {layer}: {error}") from None
        (keep, keep_rank, keep_values), (drop, drop_rank, drop_values) = sides
        mean = covariance.means(layer)[0] if centre else None
        subspaces[layer] = Subspaces(keep, drop, keep_rank, drop_rank, keep_values, drop_values, mean)
    options: dict[str, Any] = {"centre": centre, "spectrum_power": power}
    options |= {"energy": list(energies)} if rank is None else {"rank": _recorded(rank)}
    return SpectralEdit(
        site=covariance.site,
        subspaces=subspaces,
        feature=covariance.feature,
        options=options,
        n=covariance.n,
        signatures={layer: covariance.signature(layer)[0] for layer in covariance.layers},
        provenance={**covariance.provenance, "versions": versions()},
    )


def check_fit_options(
    energy: Energy,
    rank: Rank | None,
    spectrum_power: SupportsFloat,
    width: int | None = None,
) -> None:
    """Refuse options that no fit can have; `width` bounds the ranks where it is known already.

    Raises:
        InputError: as `fit`.
    """
    if rank is None and not all(0 < k <= 1 for k in _energies(energy)):
        raise InputError(f"energy {energy} is outside (0, 1]")
    given = [] if rank is None else rank.values() if isinstance(rank, Mapping) else [rank]
    pairs = [_ranks(pair) for pair in given]
    if width is not None and any(max(pair) > width for pair in pairs):
        raise InputError(f"rank {rank} is above the width of the activations, {width}")
    if not as_number(spectrum_power, "spectrum_power") > 0:
        raise InputError(f"spectrum_power {spectrum_power} is not positive")


def _ranks_of_layers(rank: Rank, covariance: CrossCovariance) -> dict[int, list[tuple[int, int]]]:
    """(k⁺, k⁻) of each unit of each layer."""
    keys = {layer: unit_keys(covariance.site, layer, covariance.units) for layer in covariance.layers}
    if not isinstance(rank, Mapping):
        return {layer: [_ranks(rank)] * len(names) for layer, names in keys.items()}
    if set(rank) != {name for names in keys.values() for name in names}:
        what = "(layer, head)" if Site.of(covariance.site).per_head else "layer"
        raise InputError(f"ranks are given for {list(rank)}, expected a pair for each {what} of {covariance.layers}")
    return {layer: [_ranks(rank[name]) for name in names] for layer, names in keys.items()}


def _recorded(rank: Rank) -> Any:
    """A rank as JSON values; a head is written as layer.head."""
    if not isinstance(rank, Mapping):
        return list(_ranks(rank))
    return {".".join(map(str, key)) if isinstance(key, tuple) else str(key): list(_ranks(rank[key])) for key in rank}


def _ranks(value: Any) -> tuple[int, int]:
    """(k⁺, k⁻) from one whole number or two."""
    positive, negative = _pair(value)
    return as_integer(positive, "rank", least=0), as_integer(negative, "rank", least=0)


def _energies(value: Any) -> tuple[float, float]:
    """(K⁺, K⁻) from one number or two."""
    positive, negative = _pair(value)
    return as_number(positive, "energy"), as_number(negative, "energy")


def _pair(value: Any) -> tuple[Any, Any]:
    if isinstance(value, (tuple, list)) or getattr(value, "ndim", 0) == 1:
        if len(value) != 2:
            raise InputError(f"expected one number or a pair (positive, negative), got {value}")
        return value[0], value[1]
    return value, value


def fit_activations(
    neutral: Float[Tensor, "..."],
    positive: Float[Tensor, "..."],
    negative: Float[Tensor, "..."],
    feature: str | FeatureMap = "identity",
    energy: Energy = 0.998,
    rank: Rank | None = None,
    centre: bool = False,
    spectrum_power: SupportsFloat = 2,
    site: str = "mlp_out",
) -> SpectralEdit:
    """Fit a spectral edit from activations that are already at hand.

    Args:
        neutral, positive, negative: (n, layers, d) each, or (n, layers, n_heads, d_head) for site `z`; layers are
            counted from 0.
        feature: the feature map φ, by name or your own.
        energy, rank, centre, spectrum_power: as in `fit`.
        site: where the edit will act.

    Raises:
        MismatchError: the three tensors differ in shape, or have the wrong number of axes for the site.
        ActivationError: NaN or infinite values; names the layer and the demonstration.
        InputError: as `fit`.
    """
    at = Site.of(site)
    axes = 4 if at.per_head else 3
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in (neutral, positive, negative)):
        raise InputError("expected three floating-point tensors")
    shapes = [tuple(x.shape) for x in (neutral, positive, negative)]
    if len(set(shapes)) > 1 or len(shapes[0]) != axes:
        wanted = "(n, layers, n_heads, d_head)" if at.per_head else "(n, layers, d)"
        raise MismatchError(f"expected three tensors of one shape {wanted}, got {shapes}")
    stacks = [at.to_units(x.detach()) for x in (neutral, positive, negative)]
    _, layers, units, d = stacks[0].shape
    covariance = CrossCovariance.empty(
        tuple(range(layers)), units, d, site=site, feature=feature_map(feature), device=neutral.device
    )
    return fit(covariance.updated(stacks[0], stacks[1], stacks[2]), energy, rank, centre, spectrum_power)
