"""What the methods that add a fixed vector to activations have in common: x + α v (docs/method.md 5.1 and 5.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from jaxtyping import Float
from torch import Tensor

from ..edits.activation import Arithmetic
from ..edits.foldable import SavedActivationEdit
from ..edits.saved import check_signatures, check_units, keyed_by_layer, require
from ..edits.where import Defaults

Kind = TypeVar("Kind", bound="Steering")

# Where new edits act unless told otherwise: at each token that one of the answer is predicted from (method.md 3.7).
STEERED = "from_last_prompt"


@dataclass(frozen=True, eq=False)
class Steering(SavedActivationEdit):
    """A vector for each layer, added α times at every position where the edit acts.

    Attributes:
        site: where it acts.
        vectors: what is added in each layer, (units, d), float64; one unit, or at site `z` each head.
        signatures: signature of each layer (docs/method.md 2.5), None where unknown.
    """

    combines: ClassVar[tuple[str, ...]] = ("add",)

    site: str
    vectors: Mapping[int, Float[Tensor, "units d"]]
    signatures: Mapping[int, float] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    defaults: Defaults = field(default=Defaults(), kw_only=True, repr=False)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.vectors))

    @property
    def shape(self) -> tuple[int, int]:
        units, d = self.vectors[self.layers[0]].shape
        return units, d

    @property
    def signature(self) -> Mapping[int, float] | None:
        return self.signatures

    def arithmetic(self, layer: int, combine: str) -> Arithmetic:
        vector = self.vectors[layer]

        def edited(x: Tensor, strength: float | int | Tensor) -> Tensor:
            if isinstance(strength, Tensor):
                strength = strength.to(x)[..., None]
            return x + strength * vector.to(x)

        return edited

    def tensors(self) -> dict[str, Tensor]:
        return {f"layers.{layer}": vector for layer, vector in self.vectors.items()}

    def facts(self) -> dict[str, Any]:
        signatures = None if self.signatures is None else {str(layer): s for layer, s in self.signatures.items()}
        return {"site": self.site, "signatures": signatures}

    @classmethod
    def from_tensors(cls: type[Kind], tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Kind:
        return cls(header["site"], vectors_of(tensors), keyed_by_layer(header["signatures"]), header["provenance"])

    def check_content(self) -> None:
        shapes = {layer: tuple(vector.shape) for layer, vector in self.vectors.items()}
        check_units(self.site, shapes, self.provenance)
        require(all(vector.is_floating_point() for vector in self.vectors.values()), "a vector holds no numbers")
        check_signatures(self.signatures, self.layers)


def vectors_of(tensors: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Each layer's vector, among the tensors that `Steering.tensors` gives."""
    return {int(key.split(".")[1]): x for key, x in tensors.items() if key.startswith("layers.")}
