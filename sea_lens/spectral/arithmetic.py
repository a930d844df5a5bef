"""What an edit does to an activation (docs/method.md 3): the arithmetic, and nothing else.

Tensors only: nothing here knows of models or files.
"""

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from .._support.saturation import saturate
from .features import FeatureMap
from .subspaces import Subspaces

# The y of `combine_projections` counts as projected away up to this many roundings of x (docs/method.md 3.2).
ROUNDINGS = 16
COMBINES = ("norm", "average", "positive_only", "negative_only", "reverse")


def power_of_two_scale(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 1"]:
    """A power of two near the size of each vector, so that dividing by it is exact and squares stay finite.

    The size is the sum of absolute values, which a single pass over x gives; it is at most d times the largest entry.
    The scale counts as a constant in a backward pass, which is right wherever the scaled computation is homogeneous
    (docs/method.md 3.6).

    Args:
        x: float32 or float64.
    """
    tiny = torch.finfo(x.dtype).tiny
    # Between the ends whose inverses are normal numbers too.
    size = torch.linalg.vector_norm(x.detach(), 1, dim=-1, keepdim=True).clamp(tiny, 1 / tiny)
    # A number with nothing but its exponent left is the power of two below it.
    bits, exponent = (torch.int32, 0x7F800000) if x.dtype == torch.float32 else (torch.int64, 0x7FF0000000000000)
    return size.view(bits).bitwise_and_(exponent).view(x.dtype)


def _norm(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 1"]:
    """Euclidean norm; of the zero vector 0, with slope 0 instead of NaN."""
    squared = x.square().sum(dim=-1, keepdim=True)
    is_zero = squared == 0
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squared).sqrt())


def _project(z: Float[Tensor, "*batch units d"], factor: Float[Tensor, "units d k"]) -> Float[Tensor, "*batch units d"]:
    """U Uᵀ z as two thin products, scaled so that no finite input overflows."""
    scale = power_of_two_scale(z)
    coordinates = einsum(z / scale, factor, "... units d, units d k -> ... units k")
    projected = einsum(coordinates, factor, "... units k, units d k -> ... units d")
    return saturate(projected * scale)


def combine_projections(
    x: Float[Tensor, "*batch units d"], subspaces: Subspaces, feature: FeatureMap, combine: str
) -> tuple[Float[Tensor, "*batch units d"], Float[Tensor, "*batch units d"]]:
    """Half of y as in `edit_activation` (or one of its two terms alone), and φ⁻¹(φ(x)), which is x within φ's range.

    y is halved because only its direction matters to `norm`, and y / 2 is what `average` asks for.
    """
    mapped = feature.forward(x)
    centre = 0.0 if subspaces.centre is None else subspaces.centre
    centred = saturate(mapped - centre)

    def positive() -> Tensor:
        return feature.invert(saturate(centre + _project(centred, subspaces.keep)), x)

    def negative() -> Tensor:
        return feature.invert(saturate(centre + (centred - _project(centred, subspaces.drop))), x)

    back = x if feature.is_identity else feature.invert(mapped, x)
    if combine == "positive_only":
        return positive(), back
    if combine == "negative_only":
        return negative(), back
    return positive() / 2 + negative() / 2, back


def edit_activation(
    x: Float[Tensor, "*batch units d"],
    subspaces: Subspaces,
    feature: FeatureMap,
    *,
    strength: float | int | Float[Tensor, "..."] = 1.0,
    combine: str = "norm",
) -> Float[Tensor, "*batch units d"]:
    """Edit activations, each vector on its own (docs/method.md 3).

        y = φ⁻¹(P⁺ φ(x)) + φ⁻¹(P⁻ φ(x)),  edited = y ‖x‖ / ‖y‖,  x + strength (edited − x)

    Args:
        x: activations in float32 or float64; half precision is for the caller to cast, since a norm overflows in it.
        subspaces: with factors on the device and in the dtype of x. With a centre c, each projection is about it:
            φ⁻¹(c + P (φ(x) − c)), docs/method.md 3.4.
        feature: the map φ that the subspaces were fitted with.
        strength: a number, or a tensor that broadcasts against (*batch, units), differentiable.
        combine: `norm` as above; `average` is y / 2 without rescaling; `positive_only` and `negative_only` take one
            of the two terms, rescaled; `reverse` swaps the two subspaces (the paper's ablations).

    Returns:
        The edited activations. Finite input never gives NaN, and what would overflow saturates. Except with `average`,
        norms are kept at strength 1, zero stays zero, and a vector whose y vanishes has no direction to go to and stays
        as it is.
    """
    if combine == "reverse":
        subspaces = subspaces.reversed()
    largest = torch.finfo(x.dtype).max
    if isinstance(strength, Tensor):
        strength = saturate(rearrange(strength.to(x), "... -> ... 1"))
    else:
        strength = max(-largest, min(strength, largest))
    is_linear = feature.is_identity and subspaces.centre is None and combine != "average"
    if is_linear and not torch.is_grad_enabled():
        return _edit_linearly(x, subspaces, strength, combine)
    y, back = combine_projections(x, subspaces, feature, combine)
    scale, y_scale = power_of_two_scale(x), power_of_two_scale(y)
    if combine == "average":
        scale = torch.maximum(scale, y_scale)
        unit_x, edited = x / scale, y / scale
    else:
        unit_x, unit_y = x / scale, y / y_scale
        x_norm, y_norm = _norm(unit_x), _norm(unit_y)
        # What is left of y when everything was projected away is rounding; it must not be blown up to full length.
        back_scale = power_of_two_scale(back)
        rounding = ROUNDINGS * torch.finfo(x.dtype).eps * _norm(back / back_scale)
        vanished = y_norm * (y_scale / back_scale) <= rounding
        edited = torch.where(vanished, unit_x, unit_y * (x_norm / torch.where(vanished, 1.0, y_norm)))
    return saturate((unit_x + strength * (edited - unit_x)) * scale)


def _edit_linearly(
    x: Float[Tensor, "*batch units d"],
    subspaces: Subspaces,
    strength: float | int | Float[Tensor, "..."],
    combine: str,
) -> Float[Tensor, "*batch units d"]:
    """`edit_activation` where φ is the identity, nothing is centred and no gradient is wanted.

    So it is in generation and scoring, at every token of every edited layer. A power of two changes no rounding, so
    that every step is the one of the general way, whether it is taken at the scale of x or at scale one (docs/method.md
    3.6). The code works in few buffers of the size of x, since fresh memory costs more than the arithmetic.
    """
    unit, scale, x_norm = x, None, _length(x)
    if not _are_moderate(x_norm, strength):
        scale = power_of_two_scale(x)
        unit = x / scale
        x_norm = _length(unit)
    # Twice the y of the general way where it has two terms; only the direction counts.
    halves = 1 if combine in ("positive_only", "negative_only") else 2
    if combine == "positive_only":
        y = _onto(unit, subspaces.keep)
    else:
        y = _onto(unit, subspaces.drop).neg_().add_(unit)
        if combine != "negative_only":
            y.add_(_onto(unit, subspaces.keep))
    y_norm = _length(y)
    vanished = y_norm <= halves * ROUNDINGS * torch.finfo(x.dtype).eps * x_norm
    # What was projected away has no direction to go to and stays as it is.
    if isinstance(strength, Tensor):
        weight = torch.where(vanished, 0.0, strength)
    else:
        weight = torch.full_like(y_norm, strength).masked_fill_(vanished, 0.0)
    y.mul_(x_norm / y_norm.masked_fill_(vanished, 1.0))
    y.sub_(unit).mul_(weight).add_(unit)
    return y if scale is None else saturate(y.mul_(scale))


def _are_moderate(norms: Float[Tensor, "*batch 1"], strength: float | int | Float[Tensor, "..."]) -> bool:
    """Whether vectors of these norms can do without a scale: none vanishes, and the edited ones cannot overflow."""
    # Any other device would have to be waited for.
    if norms.device.type != "cpu" or isinstance(strength, Tensor) or norms.numel() == 0:
        return False
    try:
        low, high = (end.item() for end in norms.aminmax())
    except RuntimeError:
        # Inside torch.func.vmap there are no numbers to look at.
        return False
    return low >= 2**-30 and high <= 2**30 and abs(strength) <= 2**30


def _length(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 1"]:
    """Euclidean norm, where nothing overflows."""
    return x.square().sum(dim=-1, keepdim=True).sqrt_()


def _onto(unit: Float[Tensor, "*batch units d"], factor: Float[Tensor, "units d k"]) -> Float[Tensor, "*batch units d"]:
    """U Uᵀ x as two thin products."""
    if len(factor) == 1:
        return unit @ factor[0] @ factor[0].T
    coordinates = einsum(unit, factor, "... units d, units d k -> ... units k")
    return einsum(coordinates, factor, "... units k, units d k -> ... units d")
