"""Sites: where in a block activations are read and edited, and how their axes are laid out (docs/method.md 1.2)."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_several
from ..errors import InputError
from .language_model import LanguageModel


@dataclass(frozen=True)
class Site:
    """One site of every block.

    A *unit* is what is edited on its own: the whole activation of a layer, d_model wide, or each query head's `z`,
    d_head wide. A site of another width needs `shape` to know of it.

    Attributes:
        name: what users and `LanguageModel.point` call it.
        per_head: whether the units are heads.
    """

    name: str
    per_head: bool = False

    @staticmethod
    def of(name: Any) -> "Site":
        """The site of this name.

        Raises:
            InputError: there is none.
        """
        if not isinstance(name, str) or name not in _SITES:
            raise InputError(f"unknown site {name!r}: expected one of {', '.join(_SITES)}")
        return _SITES[name]

    def point(self, lens: LanguageModel, layer: int) -> str:
        """What it is called in a layer: the name of its hook point.

        Raises:
            UnsupportedModelError: this model has no such hook point.
        """
        return lens.point(self.name, layer)

    def shape(self, lens: LanguageModel) -> tuple[int, int]:
        """(units per layer, width of a unit) in a model: (1, d_model), or (n_heads, d_head)."""
        return (lens.n_heads, lens.d_head) if self.per_head else (1, lens.d_model)

    def to_units(self, x: Float[Tensor, "..."]) -> Float[Tensor, "*batch units d"]:
        """An activation with its units as an axis: heads are one already."""
        # No einops in these two: it takes longer than the shape does, at every token of every edited layer.
        return x if self.per_head else x.unsqueeze(-2)

    def from_units(self, x: Float[Tensor, "*batch units d"]) -> Float[Tensor, "..."]:
        """The inverse of `to_units`."""
        return x if self.per_head else x.squeeze(-2)

    def place(self, layer: int, unit: int) -> tuple[int, ...]:
        """What a unit is called in labels: (layer, head), or (layer,) where a layer is one unit."""
        return (layer, unit) if self.per_head else (layer,)


_SITES = {site.name: site for site in (Site("mlp_out"), Site("attn_out"), Site("resid_post"), Site("z", per_head=True))}
SITES = tuple(_SITES)


def site_names(site: Any) -> list[str]:
    """The names of a site or of several.

    Raises:
        InputError: one is unknown or given twice, or there is none.
    """
    return [Site.of(name).name for name in as_several(site, "site", str)]


def unit_keys(site: str, layer: int, units: int) -> list[Any]:
    """What the units of a layer are called where each has something of its own: the layer, or (layer, head)."""
    return [(layer, head) for head in range(units)] if Site.of(site).per_head else [layer]
