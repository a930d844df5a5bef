"""Fitting a spectral edit, from captured cross-covariances or from activations (docs/method.md 2)."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsFloat

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.processes import shared
from .._support.versions import versions
from ..errors import ActivationError, InputError, MismatchError
from ..models.sites import Site, unit_keys
from .covariance import CrossCovariance, as_covariance
from .edit import SpectralEdit
from .features import FeatureMap, feature_map
from .ranks import DROP, KEEP, Energy, Rank, Size
from .signatures import centred_signature, signature
from .singular import Spectrum
from .subspaces import Subspaces, leading_subspace


def fit(
    covariance: CrossCovariance,
    energy: Energy = 0.998,
    rank: Rank | None = None,
    centre: bool = False,
    spectrum_power: SupportsFloat = 2,
    *,
    whole_spectrum: bool = False,
) -> SpectralEdit:
    """Fit a spectral edit from captured cross-covariances (docs/method.md 2).

    Args:
        covariance: from `capture`.
        energy: share K of spectral energy that the kept and the dropped subspace must reach, each in (0, 1]; one
            number or a pair (K⁺, K⁻). Uncentred, the first direction is close to the mean activation and takes most
            of the energy, so compare ranks between models, not energies.
        rank: (k⁺, k⁻) instead of an energy, or one number for both; or a pair for each layer, at site `z` for each
            (layer, head), as `SpectralEdit.ranks` gives them.
        centre: subtract the sample mean of each of the three sets, after φ, and edit about the neutral mean.
        spectrum_power: the power of the singular values that counts as energy; 2 as in the authors' code.
        whole_spectrum: compute all singular values, for a plot of them. Without it only the leading ones are computed
            where that is faster, and the energy of the rest is known all the same (docs/method.md 2.6).

    Returns:
        The edit, for every layer captured.

    Raises:
        InputError: no statistics, energy outside (0, 1], a rank outside 0 to d, ranks for other layers or heads, or a
            power that is not positive.
        ActivationError: no demonstrations, or a cross-covariance that overflows, or one of the positives that is zero
            up to rounding; of negatives that is zero nothing is dropped.

    Warns:
        UserWarning: a rank is above the numerical rank (docs/method.md 2.4) and cut to it; names the layer.

    Example:
        >>> sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
        SpectralEdit(site='mlp_out', feature='identity', n=432, ranks={0: (12, 12), 1: (12, 12), 2: (12, 12)})
    """
    size = Size.of(energy, rank, spectrum_power)
    return fit_to_size(as_covariance(covariance), size, centre, whole_spectrum=whole_spectrum)


def fit_to_size(
    covariance: CrossCovariance, size: Size, centre: bool = False, *, whole_spectrum: bool = False
) -> SpectralEdit:
    """`fit` with energy or ranks as one `Size`; errors as there."""
    size.check_width(covariance.d)
    keys = {layer: unit_keys(covariance.site, layer, covariance.units) for layer in covariance.layers}
    what = "(layer, head)" if Site.of(covariance.site).per_head else "layer"
    size.check_keys([key for names in keys.values() for key in names], f"{what} of {covariance.layers}")
    if covariance.n == 0:
        raise ActivationError("no demonstrations to fit from")

    asked = _Asked(size, bool(centre), whole_spectrum or size.needs_all_values, _rounding(covariance))
    fitted = shared(covariance.layers, lambda layer: _fitted(covariance, layer, keys[layer], asked))
    of_layer = dict(zip(covariance.layers, fitted, strict=True))
    below = [told for one in fitted for told in one.below]
    if below:
        told = ", ".join(below[:4]) + (", …" if len(below) > 4 else "")
        warnings.warn(f"ranks above the numerical rank of the cross-covariances are cut to it: {told}", stacklevel=3)
    return SpectralEdit(
        site=covariance.site,
        subspaces={layer: one.subspaces for layer, one in of_layer.items()},
        feature=covariance.feature,
        options={"centre": asked.centre, "spectrum_power": size.power, **size.record},
        n=covariance.n,
        signatures={layer: one.signature for layer, one in of_layer.items()},
        provenance={
            **covariance.provenance,
            "centred_signature": {str(layer): one.centred_signature for layer, one in of_layer.items()},
            "versions": versions(),
        },
    )


class _Asked(NamedTuple):
    """What a fit was asked for, the same for every layer."""

    size: Size
    centre: bool
    whole: bool
    rounding: float


class _Fitted(NamedTuple):
    """What a fit found of one layer; `below` names units that got fewer directions than were asked for."""

    subspaces: Subspaces
    signature: float
    centred_signature: float
    below: list[str]


def _fitted(covariance: CrossCovariance, layer: int, keys: Sequence[Any], asked: _Asked) -> _Fitted:
    """The fit of one layer, on a GPU where there is one."""
    statistics = covariance.at(layer).to("cuda" if torch.cuda.is_available() else "cpu")
    size, centre, rounding = asked.size, asked.centre, asked.rounding
    means, sides, below = statistics.means, [], []
    for side in (KEEP, DROP):

        def ranks(spectrum: Spectrum, side: int = side) -> Tensor:
            return size.ranks(spectrum, side, keys)

        try:
            # Centring takes away the product of two means, and leaves the rounding of numbers of its size.
            taken = rounding * means[0].norm(dim=-1) * means[1 + side].norm(dim=-1) if centre else None
            # Where nothing tells negatives from each other nothing is dropped; an edit that keeps nothing is none.
            product = statistics.product(side, centre=centre)
            found = leading_subspace(product, ranks, taken, rounding, may_be_empty=side == DROP, whole=asked.whole)
        except ActivationError as error:
            raise ActivationError(f"layer {layer}: {error}") from None
        sides.append(found)
        below += size.below(found.ranks, side, keys)
    subspaces = Subspaces.of(*sides, centre=means.neutral if centre else None).to("cpu", torch.float64)
    return _Fitted(subspaces, signature(means)[0], centred_signature(means), below)


def _rounding(covariance: CrossCovariance) -> float:
    """Singular values up to this share of the largest are rounding (docs/method.md 2.4).

    The activations' own rounding enters squared, since both factors have it. Half precision counts as float32: its
    rounding of a large entry stays in that entry's coordinate, and says nothing of the others.
    """
    name = covariance.provenance.get("model", covariance.provenance).get("dtype", "float64")
    eps = min(torch.finfo(getattr(torch, str(name), torch.float64)).eps, torch.finfo(torch.float32).eps)
    return max(covariance.n, covariance.d) * max(torch.finfo(torch.float64).eps, eps**2)


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

    Returns:
        The edit, for layers 0 to layers − 1.

    Raises:
        MismatchError: the three tensors differ in shape, or have the wrong number of axes for the site.
        ActivationError: NaN or infinite values (names the layer and the demonstration), or as `fit`.
        InputError: an unknown site or feature, inputs that are no floating-point tensors, or as `fit`.

    Example:
        >>> import torch
        >>> neutral, positive, negative = torch.randn(3, 100, 2, 16)
        >>> edit = sl.fit_activations(neutral, positive, negative, rank=(4, 2))
        >>> edit.ranks
        {0: (4, 2), 1: (4, 2)}
        >>> edit(neutral[:, 0], layer=0).shape
        torch.Size([100, 16])
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
        tuple(range(layers)),
        units,
        d,
        site=site,
        feature=feature_map(feature),
        provenance={"dtype": str(neutral.dtype).removeprefix("torch.")},
    )
    return fit(covariance.updated(stacks[0], stacks[1], stacks[2]), energy, rank, centre, spectrum_power)
