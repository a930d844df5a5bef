"""What methods have in common that add a fixed vector to activations: x + α v."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from jaxtyping import Float
from torch import Tensor

from .._support.numerics import saturate
from .._support.storage import as_file_errors, read_tensors, write_tensors
from ..edits.activation import ActivationEdit

Kind = TypeVar("Kind", bound="Steering")


@dataclass(frozen=True, eq=False)
class Steering(ActivationEdit):
    """A vector for each layer, added α times at every position.

    Attributes:
        kind: what its files are called.
        site: where it acts.
        vectors: what is added in each layer, (units, d), float64; one unit, or at site `z` each head.
        signatures: signature of each layer (SEA.md section 5), None where unknown.
        provenance: the model, how the activations were read, and versions; JSON values.
    """

    combines: ClassVar[tuple[str, ...]] = ("add",)
    kind: ClassVar[str]

    site: str
    vectors: Mapping[int, Float[Tensor, "units d"]]
    signatures: Mapping[int, float] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.vectors))

    @property
    def shape(self) -> tuple[int, int]:
        units, d = self.vectors[self.layers[0]].shape
        return units, d

    @property
    def n_layers(self) -> int | None:
        return self.provenance.get("model", {}).get("n_layers")

    @property
    def signature(self) -> Mapping[int, float] | None:
        return self.signatures

    def edit_units(
        self, x: Float[Tensor, "*batch units d"], layer: int, strength: float | int | Tensor, combine: str
    ) -> Float[Tensor, "*batch units d"]:
        if isinstance(strength, Tensor):
            strength = strength.to(x)[..., None]
        return saturate(x + strength * self.vectors[layer].to(x))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vectors as safetensors, with provenance inside.

        Raises:
            FileError: the file cannot be written; a half-written one is never left.
        """
        tensors = {f"layers.{layer}": vector for layer, vector in self.vectors.items()}
        signatures = None if self.signatures is None else {str(layer): s for layer, s in self.signatures.items()}
        header = {"site": self.site, "signatures": signatures, "provenance": dict(self.provenance)}
        write_tensors(path, tensors | self._more_tensors(), kind=self.kind, header=header | self._more_header())

    @classmethod
    def load(cls: type[Kind], path: str | os.PathLike[str]) -> Kind:
        """Read what `save` wrote.

        Raises:
            FileError: missing, truncated or foreign.
        """
        tensors, header = read_tensors(path, kind=cls.kind)
        with as_file_errors(path):
            vectors = {int(key.split(".")[1]): x for key, x in tensors.items() if key.startswith("layers.")}
            signatures = header["signatures"]
            return cls(
                header["site"],
                vectors,
                None if signatures is None else {int(layer): s for layer, s in signatures.items()},
                header["provenance"],
                **cls._read_more(tensors, header),
            )

    # What a method has beside its vectors, for files.

    def _more_tensors(self) -> dict[str, Tensor]:
        return {}

    def _more_header(self) -> dict[str, Any]:
        return {}

    @classmethod
    def _read_more(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> dict[str, Any]:
        return {}
