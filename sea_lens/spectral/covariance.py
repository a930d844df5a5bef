"""Streamed cross-covariances of neutral with positive and negative activations (docs/method.md 2).

Everything that a fit needs from N demonstrations is two sums of outer products, three sums of vectors, and N. They are
sums, so batches can be streamed, shards merged, and memory does not depend on N. All are kept in float64.

A *unit* is what is edited on its own: a layer's activation (one unit, d_model wide) or, at site `z`, each head of a
layer (n_heads units, d_head wide).
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from .._support.storage import ImpossibleError, as_file_errors, read_tensors, write_tensors
from ..errors import ActivationError, MismatchError
from ..models.sites import SITES
from .features import FeatureMap, recorded_feature_map
from .possible_sums import check_possible

KIND = "cross-covariance"
SUMS = ("sum_outer_positive", "sum_outer_negative", "sum_neutral", "sum_positive", "sum_negative")


@dataclass(frozen=True, eq=False)
class CrossCovariance:
    """Sufficient statistics of a spectral fit, for several layers at once.

    Attributes:
        layers: the layers, ascending; index i of every tensor belongs to layers[i].
        site: the site that the edit will act on.
        feature: the map φ that the activations went through.
        n: number of demonstrations.
        sum_outer_positive, sum_outer_negative: Σ φ(h) φ(h⁺)ᵀ and Σ φ(h) φ(h⁻)ᵀ, rows neutral, float64.
        sum_neutral, sum_positive, sum_negative: Σ φ(h), Σ φ(h⁺) and Σ φ(h⁻), float64.
        provenance: where the activations came from (model, position, neutral choice, …), JSON values.
    """

    layers: tuple[int, ...]
    site: str
    feature: FeatureMap
    n: int
    sum_outer_positive: Float[Tensor, "layers units d d"]
    sum_outer_negative: Float[Tensor, "layers units d d"]
    sum_neutral: Float[Tensor, "layers units d"]
    sum_positive: Float[Tensor, "layers units d"]
    sum_negative: Float[Tensor, "layers units d"]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self._check_form()
        except (ValueError, TypeError, AttributeError) as error:
            raise ImpossibleError(f"this is no cross-covariance: {error}") from error

    def _check_form(self) -> None:
        """What can be seen without looking at the sums, since these are made anew for every batch."""
        layers = self.layers
        whole = all(type(layer) is int and layer >= 0 for layer in layers)
        if not layers or not whole or any(a >= b for a, b in itertools.pairwise(layers)):
            raise ValueError(f"its layers are {list(layers)}, expected some in ascending order")
        if type(self.n) is not int or not 0 <= self.n < 2**53:
            raise ValueError(f"its number of demonstrations is {self.n!r}")
        if self.site not in SITES:
            raise ValueError(f"unknown site {self.site!r}")
        if self.sum_neutral.ndim != 3:
            raise ValueError(f"a sum has shape {tuple(self.sum_neutral.shape)}, expected (layers, units, width)")
        n_layers, units, d = self.sum_neutral.shape
        for name in SUMS:
            found, wanted = getattr(self, name), (n_layers, units, d, d) if "outer" in name else (n_layers, units, d)
            if tuple(found.shape) != wanted or found.dtype != torch.float64:
                raise ValueError(f"{name} has shape {tuple(found.shape)} and dtype {found.dtype}, expected {wanted}")
        if n_layers != len(layers) or min(units, d) < 1:
            raise ValueError(f"{len(layers)} layers cannot have sums of shape {tuple(self.sum_neutral.shape)}")
        if not isinstance(self.provenance, Mapping):
            raise ValueError("the provenance is no object")

    def check(self) -> None:
        """Refuse sums that no demonstrations have.

        Raises:
            InputError: saying what does not hold.
        """
        check_possible(self, SUMS)

    @classmethod
    def empty(
        cls,
        layers: tuple[int, ...],
        units: int,
        d: int,
        *,
        site: str,
        feature: FeatureMap,
        provenance: dict[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> "CrossCovariance":
        """Statistics of no demonstrations yet."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(len(layers), units, *shape, dtype=torch.float64, device=device)

        return cls(layers, site, feature, 0, zeros(d, d), zeros(d, d), zeros(d), zeros(d), zeros(d), provenance or {})

    @property
    def d(self) -> int:
        """Width of a unit: d_model, or d_head at site `z`."""
        return self.sum_neutral.shape[-1]

    @property
    def units(self) -> int:
        """Units per layer: 1, or n_heads at site `z`."""
        return self.sum_neutral.shape[1]

    def updated(
        self,
        neutral: Float[Tensor, "batch layers units d"],
        positive: Float[Tensor, "batch layers units d"],
        negative: Float[Tensor, "batch layers units d"],
        names: Sequence[str] | None = None,
    ) -> "CrossCovariance":
        """These statistics with a batch of activations added; the sums are updated in place, for streaming.

        Args:
            neutral, positive, negative: activations before φ.
            names: what errors call the demonstrations; by default their numbers, counted on from those already added.

        Raises:
            ActivationError: a value is NaN or infinite; names the layer and the demonstration.
        """
        names = names or [f"demonstration {i}" for i in range(self.n, self.n + len(neutral))]
        mapped = []
        for kind, activations in (("neutral", neutral), ("positive", positive), ("negative", negative)):
            refuse_non_finite(kind, activations, names, self.site, self.layers)
            mapped.append(self.feature.forward(activations.to(self.sum_neutral)))
        h, plus, minus = mapped
        pattern = "batch layers units i, batch layers units j -> layers units i j"
        self.sum_outer_positive.add_(einsum(h, plus, pattern))
        self.sum_outer_negative.add_(einsum(h, minus, pattern))
        for total, values in zip((self.sum_neutral, self.sum_positive, self.sum_negative), mapped, strict=True):
            total.add_(reduce(values, "batch layers units d -> layers units d", "sum"))
        return replace(self, n=self.n + len(neutral))

    def __add__(self, other: "CrossCovariance") -> "CrossCovariance":
        """Merge two shards of one set of demonstrations; exact up to float64 rounding.

        Raises:
            MismatchError: the shards differ in layers, site, feature, units, width or in how they were captured.
        """
        if not isinstance(other, CrossCovariance):
            return NotImplemented
        self._refuse_other_run(other)
        sums = {name: getattr(self, name) + getattr(other, name).to(self.sum_neutral) for name in SUMS}
        sources = [*self.provenance.get("demonstrations", []), *other.provenance.get("demonstrations", [])]
        provenance = self.provenance | ({"demonstrations": sources} if sources else {})
        return replace(self, n=self.n + other.n, provenance=provenance, **sums)

    def __sub__(self, other: "CrossCovariance") -> "CrossCovariance":
        """These statistics without a shard that is part of them, as a jackknife needs; up to float64 rounding.

        Raises:
            MismatchError: they differ as for `+`, or the shard has more demonstrations than there are.
        """
        if not isinstance(other, CrossCovariance):
            return NotImplemented
        if other.n > self.n:
            raise MismatchError(f"cannot take {other.n} demonstrations away from {self.n}")
        self._refuse_other_run(other)
        sums = {name: getattr(self, name) - getattr(other, name).to(self.sum_neutral) for name in SUMS}
        provenance = dict(self.provenance)
        if "demonstrations" in provenance:
            sources = list(provenance["demonstrations"])
            for one in other.provenance.get("demonstrations", []):
                if one in sources:
                    sources.remove(one)
                else:
                    # What is left of a larger source is told as the whole, less what was taken away.
                    sources.append({name: fact for name, fact in one.items() if name != "questions"} | {"n": -one["n"]})
            provenance["demonstrations"] = sources
        return replace(self, n=self.n - other.n, provenance=provenance, **sums)

    def __radd__(self, other: object) -> "CrossCovariance":
        """So that `sum` merges a list of shards."""
        return self if other == 0 else NotImplemented

    def _refuse_other_run(self, other: "CrossCovariance") -> None:
        ours, theirs = (_comparable(c.provenance) | c.shared_facts() for c in (self, other))
        for name in sorted({*ours, *theirs} - {"demonstrations"}):
            if ours.get(name) != theirs.get(name):
                raise MismatchError(
                    f"cannot merge shards of different runs: {name} is {ours.get(name)!r} here, "
                    f"{theirs.get(name)!r} there"
                )

    def shared_facts(self) -> dict[str, Any]:
        """What two shards must agree on."""
        return {
            "layers": self.layers,
            "site": self.site,
            "feature": self.feature.record,
            "units": self.units,
            "width": self.d,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the statistics as safetensors, so that shards from several machines can be merged.

        Raises:
            InputError: sums that no demonstrations have.
            FileError: the file cannot be written; a half-written one is never left.
        """
        self.check()
        header = {
            "layers": list(self.layers),
            "site": self.site,
            "feature": self.feature.record,
            "n": self.n,
            "provenance": self.provenance,
        }
        write_tensors(path, {name: getattr(self, name) for name in SUMS}, kind=KIND, header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str], feature: FeatureMap | None = None) -> "CrossCovariance":
        """Read what `save` wrote; `feature` gives the feature map, where it was one of the user's own.

        Raises:
            FileError: missing, truncated, foreign, or with a feature map that is neither known nor given.
        """
        tensors, header = read_tensors(path, kind=KIND)
        with as_file_errors(path):
            loaded = cls(
                layers=tuple(header["layers"]),
                site=header["site"],
                feature=recorded_feature_map(header["feature"], feature),
                n=header["n"],
                provenance=header["provenance"],
                **{name: tensors[name] for name in SUMS},
            )
            if set(tensors) != set(SUMS):
                raise ValueError(f"it holds {sorted(tensors)}")
            loaded.check()
        return loaded

    def to(self, device: torch.device | str) -> "CrossCovariance":
        """The same statistics on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in SUMS})

    def omega(
        self, layer: int, *, centre: bool = False
    ) -> tuple[Float[Tensor, "units d d"], Float[Tensor, "units d d"]]:
        """(Ω⁺, Ω⁻) of one layer (docs/method.md 2.1 and 2.3), rows neutral; with `centre`, about the sample means."""
        i = self.layers.index(layer)
        outer = self.sum_outer_positive[i] / self.n, self.sum_outer_negative[i] / self.n
        if not centre:
            return outer
        neutral, positive, negative = self.means(layer)
        pattern = "units i, units j -> units i j"
        return outer[0] - einsum(neutral, positive, pattern), outer[1] - einsum(neutral, negative, pattern)

    def means(self, layer: int) -> tuple[Float[Tensor, "units d"], Float[Tensor, "units d"], Float[Tensor, "units d"]]:
        """Sample means of φ(neutral), φ(positive) and φ(negative) at one layer."""
        i = self.layers.index(layer)
        return self.sum_neutral[i] / self.n, self.sum_positive[i] / self.n, self.sum_negative[i] / self.n

    def centred_signature(self, layer: int) -> float:
        """Distance of the two class means of a layer (docs/method.md 2.5), heads side by side; in units of φ.

        It is the first singular value of the centred matrix of 2.5 times √2, and does not follow the size of what both
        classes share, as `signature` does.
        """
        _, positive, negative = self.means(layer)
        return (positive - negative).norm().item()

    def signature(self, layer: int) -> tuple[float, Float[Tensor, " 2"]]:
        """Signature of a layer and its explained variance (docs/method.md 2.5).

        The matrix (1/N) Σ x yᵀ of the 2N stacked [positive; negative] activations x (after φ, heads side by side) and
        their one-hot labels y has the two class means as its columns. The signature is the sum of its singular
        values; the explained variance is their squares, normalised. Divisor N, no centring, as in the authors' code.
        """
        _, positive, negative = self.means(layer)
        columns = rearrange([positive, negative], "label units d -> (units d) label")
        singular_values = torch.linalg.svdvals(columns)
        variance = singular_values.square()
        return singular_values.sum().item(), variance / variance.sum()


def _comparable(provenance: dict[str, Any]) -> dict[str, Any]:
    """What two shards must agree on: not on what the check of the model measured, which rounds on every machine."""
    # Shards of version 0.1 do not say how weights were processed; those of `load_model` were not.
    model = {"processing": []} | {name: fact for name, fact in provenance.get("model", {}).items() if name != "check"}
    return provenance | ({"model": model} if "model" in provenance else {})


def refuse_non_finite(
    kind: str,
    activations: Float[Tensor, "batch layers units d"],
    names: Sequence[str],
    site: str,
    layers: Sequence[int],
) -> None:
    """Refuse activations of a `kind` of text that are NaN or infinite.

    Raises:
        ActivationError: naming the layer and the demonstration.
    """
    finite = reduce(torch.isfinite(activations), "batch layers units d -> batch layers", "all")
    if not finite.all():
        row, layer = (~finite).nonzero()[0].tolist()
        raise ActivationError(
            f"the {kind} activation of {names[row]} at layer {layers[layer]}, site {site!r}, holds NaN or infinite "
            f"values"
        )
