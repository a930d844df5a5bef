"""`SpectralEdit` and the fits that make one (SEA.md sections 2 and 3)."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, SupportsFloat, SupportsIndex, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from .arguments import as_integer, as_number
from .covariance import CrossCovariance
from .errors import ActivationError, InputError, MismatchError
from .features import FeatureMap, feature_map, recorded_feature_map
from .intervention import ActivationEdit
from .models.sites import check_site, to_units
from .storage import as_file_errors, read_header, read_tensors, write_tensors
from .subspaces import COMBINES, Subspaces, edit_activation, leading_subspace
from .versions import versions

# A pair may come as any sequence; its length is checked with the values.
Energy: TypeAlias = SupportsFloat | Sequence[SupportsFloat]
Rank: TypeAlias = SupportsIndex | Sequence[SupportsIndex] | Mapping[Any, Sequence[SupportsIndex]]


@dataclass(frozen=True, eq=False)
class SpectralEdit(ActivationEdit):
    """A fitted spectral edit: call it on activations, or put it into a model with `applied` or `install`.

    Attributes:
        site: where it acts.
        subspaces: the kept and dropped subspaces of each layer.
        feature: the feature map φ, the identity for linear SEA.
        options: what the fit was asked for (energy or rank, centre, spectrum_power).
        n: number of demonstrations.
        signatures: signature of each layer.
        provenance: the model, how it was captured, and versions; JSON values.
    """

    combines: ClassVar[tuple[str, ...]] = COMBINES

    site: str
    subspaces: Mapping[int, Subspaces]
    feature: FeatureMap
    options: Mapping[str, Any]
    n: int
    signatures: Mapping[int, float]
    provenance: Mapping[str, Any]
    _cast: dict[tuple[int, torch.device, torch.dtype], Subspaces] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.subspaces))

    @property
    def shape(self) -> tuple[int, int]:
        keep = self.subspaces[self.layers[0]].keep
        return keep.shape[0], keep.shape[1]

    @property
    def n_layers(self) -> int | None:
        return self.provenance.get("model", {}).get("n_layers")

    @property
    def signature(self) -> Mapping[int, float]:
        return self.signatures

    @property
    def ranks(self) -> dict[Any, tuple[int, int]]:
        """{layer: (k⁺, k⁻)}; at site `z`, where each head has its own, {(layer, head): (k⁺, k⁻)}."""
        found: dict[Any, tuple[int, int]] = {}
        for layer in self.layers:
            subspaces = self.subspaces[layer]
            pairs = list(zip(subspaces.keep_rank.tolist(), subspaces.drop_rank.tolist(), strict=True))
            found |= {(layer, head): pair for head, pair in enumerate(pairs)} if self.site == "z" else {layer: pairs[0]}
        return found

    def projections(
        self, layer: SupportsIndex, head: SupportsIndex | None = None
    ) -> tuple[Float[Tensor, "*heads d d"], Float[Tensor, "*heads d d"]]:
        """(P⁺, P⁻) of a layer as full float64 matrices, each (d, d); at site `z` (heads, d, d), or of one `head`.

        Raises:
            InputError: a layer that there is no edit for.
        """
        at = as_integer(layer, "layer")
        if at not in self.subspaces:
            raise InputError(f"no edit for layer {at}: expected one of {list(self.layers)}")
        keep, drop = self.subspaces[at].projections()
        if self.site != "z":
            return keep[0], drop[0]
        return (keep, drop) if head is None else (keep[head], drop[head])

    def edit_units(
        self, x: Float[Tensor, "*batch units d"], layer: int, strength: float | int | Tensor, combine: str
    ) -> Float[Tensor, "*batch units d"]:
        key = (layer, x.device, x.dtype)
        if key not in self._cast:
            # What is made in inference mode could never be part of a backward pass later on.
            with torch.inference_mode(False):
                self._cast[key] = self.subspaces[layer].to(x.device, x.dtype)
        return edit_activation(x, self._cast[key], self.feature, strength=strength, combine=combine)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the edit as safetensors: factors in float64, never d × d matrices, with options and provenance inside.

        Raises:
            FileError: the file cannot be written; a half-written one is never left.
        """
        tensors: dict[str, Tensor] = {}
        for layer, subspaces in self.subspaces.items():
            for name in ("keep", "drop", "keep_rank", "drop_rank", "keep_values", "drop_values", "centre"):
                if (tensor := getattr(subspaces, name)) is not None:
                    tensors[f"layers.{layer}.{name}"] = tensor
        header = {
            "site": self.site,
            "feature": self.feature.record,
            "options": dict(self.options),
            "n": self.n,
            "signatures": {str(layer): value for layer, value in self.signatures.items()},
            "provenance": dict(self.provenance),
        }
        write_tensors(path, tensors, kind="spectral edit", header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str], feature: FeatureMap | None = None) -> "SpectralEdit":
        """Read what `save` wrote.

        Args:
            path: the file.
            feature: the feature map, where the edit was fitted with one of the user's own.

        Raises:
            FileError: missing, truncated, foreign, or fitted with a feature map that is neither known nor given.
        """
        tensors, header = read_tensors(path, kind="spectral edit")
        with as_file_errors(path):
            grouped: dict[int, dict[str, Tensor]] = {}
            for key, tensor in tensors.items():
                _, layer, field_name = key.split(".")
                grouped.setdefault(int(layer), {})[field_name] = tensor
            return cls(
                site=header["site"],
                subspaces={layer: Subspaces(**grouped[layer]) for layer in sorted(grouped)},
                feature=recorded_feature_map(path, header["feature"], feature),
                options=header["options"],
                n=header["n"],
                signatures={int(layer): value for layer, value in header["signatures"].items()},
                provenance=header["provenance"],
            )

    @staticmethod
    def header(path: str | os.PathLike[str]) -> dict[str, Any]:
        """What a saved edit says of itself, without reading its tensors; raises as `load` does."""
        return read_header(path, kind="spectral edit")

    def __repr__(self) -> str:
        ranks = ", ".join(f"{key}: {pair}" for key, pair in list(self.ranks.items())[:8])
        more = ", …" if len(self.ranks) > 8 else ""
        return f"SpectralEdit(site={self.site!r}, feature={self.feature.name!r}, n={self.n}, ranks={{{ranks}{more}}})"


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
    keys = {
        layer: [(layer, head) for head in range(covariance.units)] if covariance.site == "z" else [layer]
        for layer in covariance.layers
    }
    if not isinstance(rank, Mapping):
        return {layer: [_ranks(rank)] * len(names) for layer, names in keys.items()}
    if set(rank) != {name for names in keys.values() for name in names}:
        what = "(layer, head)" if covariance.site == "z" else "layer"
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
    check_site(site)
    axes = 4 if site == "z" else 3
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in (neutral, positive, negative)):
        raise InputError("expected three floating-point tensors")
    shapes = [tuple(x.shape) for x in (neutral, positive, negative)]
    if len(set(shapes)) > 1 or len(shapes[0]) != axes:
        wanted = "(n, layers, n_heads, d_head)" if site == "z" else "(n, layers, d)"
        raise MismatchError(f"expected three tensors of one shape {wanted}, got {shapes}")
    stacks = [to_units(x.detach(), site) for x in (neutral, positive, negative)]
    _, layers, units, d = stacks[0].shape
    covariance = CrossCovariance.empty(
        tuple(range(layers)), units, d, site=site, feature=feature_map(feature), device=neutral.device
    )
    return fit(covariance.updated(stacks[0], stacks[1], stacks[2]), energy, rank, centre, spectrum_power)


def with_subspaces(edit: SpectralEdit, subspaces: Mapping[int, Subspaces], note: str) -> SpectralEdit:
    """The same edit with other subspaces in it, for controls; `note` is recorded in the provenance."""
    return replace(edit, subspaces=subspaces, provenance={**edit.provenance, "control": note}, _cast={})
