"""`SpectralEdit`: what was fitted, applied to activations, and what its file must hold (docs/method.md 3)."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, SupportsIndex

from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer
from .._support.saturation import saturate, widened
from .._support.storage import read_header
from ..edits.activation import Arithmetic
from ..edits.foldable import SavedActivationEdit
from ..edits.saved import (
    check_signatures,
    check_units,
    grouped_by_layer,
    keyed_by_layer,
    read_edit,
    require,
)
from ..edits.where import Defaults
from ..errors import InputError
from .arithmetic import COMBINES, combine_projections, edit_activation
from .factors import Factors
from .features import FeatureMap, recorded_feature_map
from .few_steps import edit_few
from .principal import truncated_subspaces
from .ranks import DROP, KEEP, RankOfEach, Size
from .singular import Spectrum
from .subspaces import Subspaces

_TENSORS = (
    "keep",
    "drop",
    "keep_rank",
    "drop_rank",
    "keep_values",
    "drop_values",
    "keep_energy",
    "drop_energy",
    "centre",
)


@dataclass(frozen=True, eq=False)
class SpectralEdit(SavedActivationEdit):
    """A fitted spectral edit: call it on activations, or put it into a model with `applied` or `install`.

    Attributes:
        site: where it acts.
        subspaces: the kept and dropped subspaces of each layer.
        feature: the feature map φ, the identity for linear SEA.
        options: what the fit was asked for (energy or rank, centre, spectrum_power).
        n: number of demonstrations, None where unknown.
        signatures: signature of each layer (docs/method.md 2.5), None where unknown.
        provenance: the model, how it was captured, and versions; JSON values.
    """

    combines: ClassVar[tuple[str, ...]] = COMBINES
    kind: ClassVar[str] = "spectral edit"

    site: str
    subspaces: Mapping[int, Subspaces]
    feature: FeatureMap
    options: Mapping[str, Any]
    n: int | None
    signatures: Mapping[int, float] | None
    provenance: Mapping[str, Any]
    defaults: Defaults = field(default=Defaults(), kw_only=True, repr=False)
    _cast: dict[tuple[int, str], Factors] = field(default_factory=dict, repr=False, compare=False)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.subspaces))

    @property
    def shape(self) -> tuple[int, int]:
        keep = self.subspaces[self.layers[0]].keep
        return keep.shape[0], keep.shape[1]

    @property
    def signature(self) -> Mapping[int, float] | None:
        return self.signatures

    @property
    def centred_signature(self) -> dict[int, float]:
        """Distance of the class means of each layer (docs/method.md 2.5); empty for an edit of an earlier version."""
        recorded = self.provenance.get("centred_signature")
        return {int(layer): float(value) for layer, value in recorded.items()} if isinstance(recorded, Mapping) else {}

    @property
    def ranks(self) -> dict[Any, tuple[int, int]]:
        """{layer: (k⁺, k⁻)}; at site `z`, where each head has its own, {(layer, head): (k⁺, k⁻)}."""
        return self._ranks_of(self.subspaces)

    def _ranks_of(self, subspaces: Mapping[int, Subspaces]) -> dict[Any, tuple[int, int]]:
        found: dict[Any, tuple[int, int]] = {}
        for layer in self.layers:
            pairs = zip(subspaces[layer].keep_rank.tolist(), subspaces[layer].drop_rank.tolist(), strict=True)
            found |= dict(zip(self.unit_keys(layer), pairs, strict=True))
        return found

    def projections(
        self, layer: SupportsIndex, head: SupportsIndex | None = None
    ) -> tuple[Float[Tensor, "*heads d d"], Float[Tensor, "*heads d d"]]:
        """(P⁺, P⁻) of a layer (docs/method.md 3.1) as full float64 matrices, each (d, d).

        At site `z` they are (n_heads, d_head, d_head), or (d_head, d_head) of one `head`.

        Raises:
            InputError: a layer that there is no edit for.
        """
        at = as_integer(layer, "layer")
        if at not in self.subspaces:
            raise InputError(f"no edit for layer {at}: expected one of {list(self.layers)}")
        keep, drop = self.subspaces[at].projections()
        if not self.at.per_head:
            return keep[0], drop[0]
        return (keep, drop) if head is None else (keep[head], drop[head])

    def truncated(self, k: SupportsIndex) -> "SpectralEdit":
        """The edit with the k principal planes of kept and dropped subspace that lie furthest apart, in each unit.

        The source is docs/method.md 8.6. What both sides hold nearly alike is left out, since it hardly changes
        anything: sin θ is the size of what a plane at angle θ adds.

        Args:
            k: how many; with as many as the larger of an edit's two ranks it is the whole edit.

        Returns:
            An edit of ranks k at most, saved and measured like any other.

        Raises:
            InputError: k below 0, or an edit through a feature map, whose subspaces are not those of activations.

        Example:
            >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
            >>> edit.truncated(3).ranks
            {0: (3, 3), 1: (3, 3), 2: (3, 3)}
        """
        k = as_integer(k, "k", least=0)
        if not self.feature.is_identity:
            raise InputError(f"only a linear edit can be truncated, got one through {self.feature.name!r}")
        subspaces = {layer: truncated_subspaces(one, k) for layer, one in self.subspaces.items()}
        options = {name: value for name, value in self.options.items() if name not in ("energy", "rank")}
        options |= RankOfEach(options["spectrum_power"], self._ranks_of(subspaces)).record
        provenance = {**self.provenance, "truncated": k}
        return replace(self, subspaces=subspaces, options=options, provenance=provenance, _cast={})

    def function(self, layer: int, strength: float | Tensor, combine: str) -> Callable[[Tensor], Tensor]:
        general = super().function(layer, strength, combine)
        if self.at.per_head or isinstance(strength, Tensor):
            return general
        factors = self._factors(layer, combine)

        def edited(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
            wide = widened(x)
            _, products = factors.beside(wide)
            if products is not None and (found := edit_few(wide, products, strength)) is not None:
                return found if wide is x else saturate(found, x.dtype).to(x.dtype)
            return general(x)

        return edited

    def unscaled(self, layer: int, combine: str) -> Callable[[Tensor], Tensor] | None:
        if combine == "average" or not self.feature.is_identity:
            return None
        factors, feature = self._factors(layer, combine), self.feature
        # A sum of two comes halved.
        times = 1 if combine in ("positive_only", "negative_only") else 2
        return lambda x: times * combine_projections(x, factors.beside(x)[0], feature, combine)[0]

    def arithmetic(self, layer: int, combine: str) -> Arithmetic:
        factors, feature = self._factors(layer, combine), self.feature

        def edited(x: Tensor, strength: float | int | Tensor) -> Tensor:
            subspaces, products = factors.beside(x)
            return edit_activation(x, subspaces, feature, strength=strength, combine=combine, products=products)

        return edited

    def _factors(self, layer: int, combine: str) -> Factors:
        if (layer, combine) not in self._cast:
            self._cast[layer, combine] = Factors(self.subspaces[layer], self.feature, combine)
        return self._cast[layer, combine]

    def tensors(self) -> dict[str, Tensor]:
        """Factors in float64, never d × d matrices."""
        return {
            f"layers.{layer}.{name}": tensor
            for layer, subspaces in self.subspaces.items()
            for name in _TENSORS
            if (tensor := getattr(subspaces, name)) is not None
        }

    def facts(self) -> dict[str, Any]:
        signatures = None if self.signatures is None else {str(layer): s for layer, s in self.signatures.items()}
        return {
            "site": self.site,
            "feature": self.feature.record,
            "options": dict(self.options),
            "n": self.n,
            "signatures": signatures,
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str], feature: FeatureMap | None = None) -> "SpectralEdit":
        """Read what `save` wrote.

        Args:
            path: the file.
            feature: the feature map, where the edit was fitted with one of the user's own.

        Raises:
            FileError: missing, truncated, foreign or damaged, or fitted with a feature map that is neither known nor
                given.
        """
        return read_edit(path, cls.kind, lambda tensors, header: cls.from_tensors(tensors, header, feature))

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any], feature: FeatureMap | None = None
    ) -> "SpectralEdit":
        return cls(
            site=header["site"],
            subspaces={layer: _subspaces(named) for layer, named in grouped_by_layer(tensors).items()},
            feature=recorded_feature_map(header["feature"], feature),
            options=header["options"],
            n=header["n"],
            signatures=keyed_by_layer(header["signatures"]),
            provenance=header["provenance"],
        )

    def check_content(self) -> None:
        shapes = {layer: tuple(one.keep.shape[:2]) for layer, one in self.subspaces.items()}
        check_units(self.site, shapes, self.provenance)
        for layer, one in self.subspaces.items():
            try:
                one.check()
            except ValueError as error:
                raise ValueError(f"layer {layer}: {error}") from None
        check_signatures(self.signatures, self.layers)
        counted = self.n is None or (type(self.n) is int and 0 < self.n < 2**53)
        require(counted, f"it is fitted to {self.n!r} demonstrations")
        sources = self.provenance.get("demonstrations")
        if sources is not None:
            require(sum(one["n"] for one in sources) == self.n, f"{self.n} demonstrations, of sources {sources}")
        centred = {layer: one.centre is not None for layer, one in self.subspaces.items()}
        wanted = self.options["centre"]
        require(set(centred.values()) == {wanted}, f"option centre is {wanted!r}, not what its layers have")
        asked = self.options.get("rank"), self.options.get("energy")
        require(sum(one is not None for one in asked) == 1, "its options name not one of rank and energy")
        size = Size.recorded(self.options)
        for layer, one in self.subspaces.items():
            for side, ranks in ((KEEP, one.keep_rank), (DROP, one.drop_rank)):
                size.check_ranks(one.spectra[side], ranks, side, self.unit_keys(layer))

    @staticmethod
    def header(path: str | os.PathLike[str]) -> dict[str, Any]:
        """What a saved edit says of itself, without reading its tensors; raises as `load` does."""
        return read_header(path, kind=SpectralEdit.kind)

    def __repr__(self) -> str:
        ranks = ", ".join(f"{key}: {pair}" for key, pair in list(self.ranks.items())[:8])
        more = ", …" if len(self.ranks) > 8 else ""
        return f"SpectralEdit(site={self.site!r}, feature={self.feature.name!r}, n={self.n}, ranks={{{ranks}{more}}})"


def _subspaces(named: Mapping[str, Tensor]) -> Subspaces:
    """The subspaces of a layer from a file; files of version 0.1 hold all singular values, and no energies."""
    energies = {
        f"{side}_energy": Spectrum.whole(named[f"{side}_values"]).energy
        for side in ("keep", "drop")
        if f"{side}_energy" not in named
    }
    return Subspaces(**named, **energies)


def with_subspaces(edit: SpectralEdit, subspaces: Mapping[int, Subspaces], note: str) -> SpectralEdit:
    """The same edit with other subspaces in it, for controls; `note` is recorded in the provenance."""
    return replace(edit, subspaces=subspaces, provenance={**edit.provenance, "control": note}, _cast={})
