"""What an edit does to an activation (docs/method.md 3): the arithmetic, and nothing else.

Tensors only: nothing here knows of models or files.
"""

from typing import NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from .._support.saturation import saturate
from .features import FeatureMap
from .subspaces import Subspaces

# The y of `combine_projections` counts as projected away up to this many roundings of x (docs/method.md 3.2).
ROUNDINGS = 16
# A power of two by which products are made smaller, so that they are finite for every finite x of up to 2¹⁶ entries.
LOW = 2.0**-10
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


class ThinProducts(NamedTuple):
    """Both projections as two thin products, where φ is the identity and nothing is centred: y = x + (x D) E.

    Attributes:
        down, up: D and E; with both subspaces, [U⁺ U⁻] and [U⁺ −U⁻]ᵀ.
        adds: whether x is a part of y, as it is but for U⁺ alone.
        rounding: the length of y over that of x up to which y is rounding, and counts as projected away.
        matrices: D and E of the first unit.
        low: D of the first unit times `LOW`.
    """

    down: Float[Tensor, "units d k"]
    up: Float[Tensor, "units k d"]
    adds: bool
    rounding: float
    matrices: tuple[Float[Tensor, "d k"], Float[Tensor, "k d"]]
    low: Float[Tensor, "d k"]

    @staticmethod
    def of(subspaces: Subspaces, combine: str) -> "ThinProducts":
        """Those of a way to combine; arguments as in `edit_activation`."""
        keep, drop = subspaces.keep, subspaces.drop
        if combine == "reverse":
            keep, drop = drop, keep
        if combine == "positive_only":
            down, up, adds, terms = keep, keep.mT.contiguous(), False, 1
        elif combine == "negative_only":
            down, up, adds, terms = drop, -drop.mT.contiguous(), True, 1
        else:
            down, up, adds, terms = torch.cat([keep, drop], -1), torch.cat([keep.mT, -drop.mT], -2), True, 2
        rounding = terms * ROUNDINGS * torch.finfo(down.dtype).eps
        return ThinProducts(down, up, adds, rounding, (down[0], up[0]), LOW * down[0])

    def sum(self, x: Float[Tensor, "*batch units d"]) -> Float[Tensor, "*batch units d"]:
        """y: the sum of the terms, a new tensor."""
        if len(self.down) == 1:
            return self.of_rows(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        coordinates = einsum(x, self.down, "... units d, units d k -> ... units k")
        moved = einsum(coordinates, self.up, "... units k, units k d -> ... units d")
        return x + moved if self.adds else moved

    def of_rows(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The same for a single unit: matrices proper, which are multiplied and added in one go."""
        down, up = self.matrices
        coordinates = rows @ down
        return torch.addmm(rows, coordinates, up) if self.adds else coordinates @ up


def edit_activation(
    x: Float[Tensor, "*batch units d"],
    subspaces: Subspaces,
    feature: FeatureMap,
    *,
    strength: float | int | Float[Tensor, "..."] = 1.0,
    combine: str = "norm",
    products: ThinProducts | None = None,
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
        products: of these subspaces and `combine`, where `is_linear`; made anew where they are not given.

    Returns:
        The edited activations. Finite input never gives NaN, and what would overflow saturates. Except with `average`,
        norms are kept at strength 1, zero stays zero, and a vector whose y vanishes has no direction to go to and stays
        as it is.
    """
    largest = torch.finfo(x.dtype).max
    if isinstance(strength, Tensor):
        strength = saturate(rearrange(strength.to(x), "... -> ... 1"))
    else:
        strength = max(-largest, min(strength, largest))
    if is_linear(subspaces, feature, combine):
        return _edit_linearly(x, products or ThinProducts.of(subspaces, combine), strength)
    if combine == "reverse":
        subspaces = subspaces.reversed()
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


def is_linear(subspaces: Subspaces, feature: FeatureMap, combine: str) -> bool:
    """Whether an edit is two thin products and a rescale (docs/method.md 3.6)."""
    return feature.is_identity and subspaces.centre is None and combine != "average"


def _edit_linearly(
    x: Float[Tensor, "*batch units d"], products: ThinProducts, strength: float | int | Float[Tensor, "..."]
) -> Float[Tensor, "*batch units d"]:
    """`edit_activation` where φ is the identity and nothing is centred.

    So it mostly is, at every token of every edited layer. A power of two changes no rounding, so that every step is the
    same at the scale of x as at scale one (docs/method.md 3.6). Without gradients the code works in few buffers of the
    size of x, since fresh memory costs more than the arithmetic.
    """
    fresh = torch.is_grad_enabled()
    unit, scale, x_norm = x, None, length(x)
    if not are_moderate(x_norm, strength):
        scale = power_of_two_scale(x)
        unit = x / scale
        x_norm = length(unit)
    # Twice the y of the general way where it has two terms; only the direction counts.
    y = products.sum(unit)
    y_norm = length(y)
    vanished = y_norm <= products.rounding * x_norm
    ratio = x_norm / y_norm.masked_fill(vanished, 1.0)
    edited = y * ratio if fresh else y.mul_(ratio)
    # What was projected away has no direction to go to and stays as it is.
    if isinstance(strength, Tensor) or _may_be(vanished):
        edited = torch.where(vanished, unit, edited)
    if isinstance(strength, Tensor) or strength != 1:
        edited = unit + strength * (edited - unit) if fresh else edited.sub_(unit).mul_(strength).add_(unit)
    return edited if scale is None else saturate(edited * scale)


def are_moderate(norms: Float[Tensor, "*batch 1"], strength: float | int | Float[Tensor, "..."]) -> bool:
    """Whether vectors of these norms can do without a scale: none vanishes, and the edited ones cannot overflow."""
    if not _can_be_looked_at(norms) or isinstance(strength, Tensor) or abs(strength) > 2**30 or norms.numel() == 0:
        return False
    try:
        low, high = (end.item() for end in norms.detach().aminmax())
    except RuntimeError:
        # Inside torch.func.vmap there are no numbers to look at.
        return False
    return low >= 2**-30 and high <= 2**30


def _may_be(mask: Bool[Tensor, "*batch 1"]) -> bool:
    """Whether a mask may hold anywhere: False only where it was seen not to."""
    try:
        return not _can_be_looked_at(mask) or bool(mask.any())
    except RuntimeError:
        return True


def _can_be_looked_at(x: Tensor) -> bool:
    """Whether numbers are at hand: any other device would have to be waited for, and a compiler has none."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def length(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 1"]:
    """Euclidean norm, where nothing overflows; of the zero vector 0, with slope 0."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)
