"""Streamed cross-covariances of neutral with positive and negative activations (docs/method.md 2).

Everything that a fit needs from N demonstrations are their activations, while these are fewer than they are wide, or
else two sums of outer products and three sums of vectors (`spectral.statistics`). Either way batches can be streamed
and shards merged; beyond N = d memory does not depend on N.

A *unit* is what is edited on its own: a layer's activation (one unit, d_model wide) or, at site `z`, each head of a
layer (n_heads units, d_head wide).
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from .._support.regular_files import check_name
from .._support.storage import ImpossibleError, as_file_errors, read_tensors, write_tensors
from ..errors import ActivationError, InputError
from ..models.sites import SITES
from .features import FeatureMap, feature_map, recorded_feature_map
from .layer_statistics import LayerStatistics, Three
from .possible import check_possible
from .runs import comparable, refuse_other_run
from .signatures import centred_signature, signature
from .statistics import Activations, InMemory, Statistics, Sums, merged, stacked
from .statistics_file import from_tensors, to_tensors
from .store import open_store

KIND = "cross-covariance"


@dataclass(frozen=True, eq=False)
class CrossCovariance:
    """What a spectral fit needs of demonstrations, for several layers at once.

    Attributes:
        layers: the layers, ascending.
        site: the site that the edit will act on.
        feature: the map φ that the activations go through.
        statistics: the activations, or sums over them.
        provenance: where the activations came from (model, position, neutral choice, …), JSON values.
    """

    layers: tuple[int, ...]
    site: str
    feature: FeatureMap
    statistics: Statistics
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self._check_form()
        except (ValueError, TypeError, AttributeError) as error:
            raise ImpossibleError(f"this is no cross-covariance: {error}") from error

    def _check_form(self) -> None:
        """What can be seen without looking at the numbers, since these are made anew for every batch."""
        layers = self.layers
        whole = all(type(layer) is int and layer >= 0 for layer in layers)
        if not layers or not whole or any(a >= b for a, b in itertools.pairwise(layers)):
            raise ValueError(f"its layers are {list(layers)}, expected some in ascending order")
        if type(self.n) is not int or not 0 <= self.n < 2**53:
            raise ValueError(f"its number of demonstrations is {self.n!r}")
        if self.site not in SITES:
            raise ValueError(f"unknown site {self.site!r}")
        self.statistics.check_form()
        n_layers, units, d = self.statistics.layout
        if n_layers != len(layers) or min(units, d) < 1:
            raise ValueError(f"{len(layers)} layers cannot have statistics of {self.statistics.layout}")
        if not isinstance(self.provenance, Mapping):
            raise ValueError("the provenance is no object")

    def check(self) -> None:
        """Refuse statistics that no demonstrations have.

        Raises:
            InputError: saying what does not hold.
        """
        check_possible(self)

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
    ) -> "CrossCovariance":
        """Statistics of no demonstrations yet."""
        return cls(layers, site, feature, Activations((len(layers), units, d)), provenance or {})

    @property
    def n(self) -> int:
        """Number of demonstrations."""
        return self.statistics.n

    @property
    def d(self) -> int:
        """Width of a unit: d_model, or d_head at site `z`."""
        return self.statistics.layout[2]

    @property
    def units(self) -> int:
        """Units per layer: 1, or n_heads at site `z`."""
        return self.statistics.layout[1]

    def updated(
        self,
        neutral: Float[Tensor, "batch layers units d"],
        positive: Float[Tensor, "batch layers units d"],
        negative: Float[Tensor, "batch layers units d"],
        names: Sequence[str] | None = None,
    ) -> "CrossCovariance":
        """These statistics with a batch of activations added; sums are updated in place, for streaming.

        Args:
            neutral, positive, negative: activations before φ, in any floating-point dtype.
            names: what errors call the demonstrations; by default their numbers, counted on from those already added.

        Raises:
            ActivationError: a value is NaN or infinite; names the layer and the demonstration.
        """
        names = names or [f"demonstration {i}" for i in range(self.n, self.n + len(neutral))]
        batch = Three(neutral, positive, negative)
        for kind, activations in batch._asdict().items():
            refuse_non_finite(kind, activations, names, self.site, self.layers)
        if isinstance(self.statistics, Sums):
            self.statistics.add(stacked(batch), self.feature)
            return self
        added = Activations(self.statistics.layout, (InMemory(stacked(batch)),))
        return replace(self, statistics=merged(self.statistics, added, self.feature))

    def __add__(self, other: "CrossCovariance") -> "CrossCovariance":
        """Merge two shards of one set of demonstrations; exact up to float64 rounding.

        Raises:
            MismatchError: the shards differ in layers, site, feature, units, width or in how they were captured.
        """
        if not isinstance(other, CrossCovariance):
            return NotImplemented
        refuse_other_run(self.facts, other.facts, "cannot merge shards of different runs")
        sources = [*self.provenance.get("demonstrations", []), *other.provenance.get("demonstrations", [])]
        provenance = self.provenance | ({"demonstrations": sources} if sources else {})
        return replace(self, provenance=provenance, statistics=merged(self.statistics, other.statistics, self.feature))

    def __radd__(self, other: object) -> "CrossCovariance":
        """So that `sum` merges a list of shards."""
        return self if other == 0 else NotImplemented

    @property
    def facts(self) -> dict[str, Any]:
        """What two shards must agree on."""
        provenance = {name: fact for name, fact in comparable(self.provenance).items() if name != "demonstrations"}
        return provenance | {
            "layers": self.layers,
            "site": self.site,
            "feature": self.feature.record,
            "units": self.units,
            "width": self.d,
        }

    def with_feature(self, feature: str | FeatureMap) -> "CrossCovariance":
        """The same activations through another feature map, without reading them again.

        Raises:
            InputError: an unknown feature, or only sums of another are left, as from d demonstrations on.
        """
        mapped = feature_map(feature)
        # Two maps of a user's own may say the same of themselves.
        if isinstance(self.statistics, Sums) and mapped != self.feature:
            raise InputError(
                f"only sums are left of these {self.n} demonstrations, through {self.feature.name!r}, as memory keeps "
                f"the activations of fewer than {self.d}: capture with store= to keep them, or with feature="
                f"[{self.feature.name!r}, {mapped.name!r}] for both in one pass"
            )
        return replace(self, feature=mapped)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the statistics as safetensors, so that shards from several machines can be merged.

        Raises:
            InputError: statistics that no demonstrations have.
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
        write_tensors(path, to_tensors(self.statistics, self.layers), kind=KIND, header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str], feature: str | FeatureMap | None = None) -> "CrossCovariance":
        """Read what `save` wrote, or the folder that `capture` kept activations in (`store=`).

        Args:
            path: a file; or a folder, of which a layer at a time is read when it is needed.
            feature: the feature map, where the file was made with one of the user's own, or any for a folder, the
                identity by default.

        Raises:
            FileError: missing, truncated, foreign, or with a feature map that is neither known nor given; a folder in
                which a capture has not ended.
        """
        if os.path.isdir(check_name(path)):  # noqa: PTH112, of names that no file can have it says no
            stored = open_store(path)
            return cls(stored.layers, stored.site, feature_map(feature or "identity"), stored.read(), stored.provenance)
        tensors, header = read_tensors(path, kind=KIND)
        with as_file_errors(path):
            layers = tuple(header["layers"])
            loaded = cls(
                layers=layers,
                site=header["site"],
                feature=recorded_feature_map(header["feature"], None if feature is None else feature_map(feature)),
                statistics=from_tensors(tensors, layers, header["n"]),
                provenance=header["provenance"],
            )
            if set(tensors) != set(to_tensors(loaded.statistics, layers)) or loaded.n != header["n"]:
                raise ValueError(f"it holds {sorted(tensors)} of {header['n']!r} demonstrations")
            loaded.check()
        return loaded

    def to(self, device: torch.device | str) -> "CrossCovariance":
        """The same statistics on another device; activations in a store stay there."""
        return replace(self, statistics=self.statistics.to(device))

    def at(self, layer: int) -> LayerStatistics:
        """The statistics of one layer.

        Raises:
            InputError: a layer that was not captured.
        """
        if layer not in self.layers:
            raise InputError(f"layer {layer} was not captured: expected one of {list(self.layers)}")
        return self.statistics.layer(self.layers.index(layer), self.feature)

    def omega(
        self, layer: int, *, centre: bool = False
    ) -> tuple[Float[Tensor, "units d d"], Float[Tensor, "units d d"]]:
        """(Ω⁺, Ω⁻) of one layer (docs/method.md 2.1 and 2.3), rows neutral; with `centre`, about the sample means."""
        found = self.at(layer)
        return found.omega(0, centre=centre), found.omega(1, centre=centre)

    def means(self, layer: int) -> tuple[Float[Tensor, "units d"], Float[Tensor, "units d"], Float[Tensor, "units d"]]:
        """Sample means of φ(neutral), φ(positive) and φ(negative) at one layer."""
        neutral, positive, negative = self.at(layer).means
        return neutral, positive, negative

    def signature(self, layer: int) -> tuple[float, Float[Tensor, " 2"]]:
        """Signature of a layer and its explained variance (docs/method.md 2.5), as `signature` of its class means."""
        return signature(self.at(layer).means)

    def centred_signature(self, layer: int) -> float:
        """Distance of the class means of a layer (docs/method.md 2.5), in units of φ."""
        return centred_signature(self.at(layer).means)


def as_covariance(given: Any) -> CrossCovariance:
    """What was given, which must be captured statistics.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(given, CrossCovariance):
        raise InputError(f"expected statistics, as sl.capture gives them for one site, got {type(given).__name__}")
    return given


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
    if not activations.numel() or torch.isfinite(torch.linalg.vector_norm(activations, torch.inf)):
        return
    finite = reduce(torch.isfinite(activations), "batch layers units d -> batch layers", "all")
    if not finite.all():
        row, layer = (~finite).nonzero()[0].tolist()
        raise ActivationError(
            f"the {kind} activation of {names[row]} at layer {layers[layer]}, site {site!r}, holds NaN or infinite "
            f"values"
        )
