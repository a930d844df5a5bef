"""Sites: where in a block activations are read and edited, and how their axes are laid out."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, UnsupportedModelError
from .lens import Lens

_HOOK_POINTS = {
    "mlp_out": "blocks.{}.hook_mlp_out",
    "attn_out": "blocks.{}.hook_attn_out",
    "resid_post": "blocks.{}.hook_resid_post",
    "z": "blocks.{}.attn.hook_z",
}
SITES = tuple(_HOOK_POINTS)


def check_site(site: str) -> None:
    """Refuse a site that is not one of `SITES`."""
    if site not in _HOOK_POINTS:
        raise InputError(f"unknown site {site!r}: expected one of {', '.join(SITES)}")


def site_point(lens: Lens, site: str, layer: int) -> str:
    """Name of the hook point of a site.

    Raises:
        InputError: unknown site.
        UnsupportedModelError: this model has no such hook point.
    """
    check_site(site)
    name = _HOOK_POINTS[site].format(layer)
    if not lens.has_point(name):
        raise UnsupportedModelError(f"model {lens.name!r} has no hook point {name!r}, so site {site!r} cannot be used")
    return name


def site_shape(lens: Lens, site: str) -> tuple[int, int]:
    """(units per layer, width of a unit): one unit of d_model, or n_heads units of d_head at `z`."""
    check_site(site)
    return (lens.n_heads, lens.d_head) if site == "z" else (1, lens.d_model)


def to_units(x: Float[Tensor, "..."], site: str) -> Float[Tensor, "*batch units d"]:
    """An activation with its units as an axis: a `z` has one already."""
    return x if site == "z" else rearrange(x, "... d -> ... 1 d")


def from_units(x: Float[Tensor, "*batch units d"], site: str) -> Float[Tensor, "..."]:
    """The inverse of `to_units`."""
    return x if site == "z" else rearrange(x, "... 1 d -> ... d")
