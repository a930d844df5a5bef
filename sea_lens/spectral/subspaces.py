"""The subspaces that an edit keeps and drops, and what it does to an activation (docs/method.md 2 and 3).

Tensors only: nothing here knows of models or files.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from .._support.numerics import saturate
from ..errors import ActivationError
from .features import FeatureMap

# The y of `combine_projections` counts as projected away up to this many roundings of x (docs/method.md 3.2).
ROUNDINGS = 16
# How far the columns of a factor may be from orthonormal.
ORTHONORMAL = 1e-6
COMBINES = ("norm", "average", "positive_only", "negative_only", "reverse")


@dataclass(frozen=True, eq=False)
class Subspaces:
    """Kept and dropped subspaces of one layer, one pair for each unit, in factored form.

    Ranks may differ between units: `keep` and `drop` are padded on the right with zero columns, which project to
    nothing.

    Attributes:
        keep: U⁺, orthonormal columns then zeros, float64.
        drop: U⁻, likewise.
        keep_rank, drop_rank: k⁺ and k⁻ of each unit.
        keep_values, drop_values: all singular values of Ω⁺ and Ω⁻, descending, float64.
        centre: mean of φ(neutral) that the edit is affine about; None for the uncentred edit.
    """

    keep: Float[Tensor, "units d k_keep"]
    drop: Float[Tensor, "units d k_drop"]
    keep_rank: Int[Tensor, " units"]
    drop_rank: Int[Tensor, " units"]
    keep_values: Float[Tensor, "units d"]
    drop_values: Float[Tensor, "units d"]
    centre: Float[Tensor, "units d"] | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> "Subspaces":
        """The same subspaces, with the factors and the centre cast to a device and dtype."""
        # Contiguous, so that an edit and what is loaded from its file multiply in one order and give the same bits.
        return Subspaces(
            self.keep.to(device, dtype).contiguous(),
            self.drop.to(device, dtype).contiguous(),
            self.keep_rank,
            self.drop_rank,
            self.keep_values,
            self.drop_values,
            None if self.centre is None else self.centre.to(device, dtype),
        )

    def check(self) -> None:
        """Refuse what no fit gives.

        Raises:
            ValueError: shapes that do not belong together, ranks out of range, singular values that are not descending
                sizes, or columns that are not orthonormal and then zero.
        """
        units, d, _ = self.keep.shape
        if self.centre is not None and self.centre.shape != (units, d):
            raise ValueError(f"centre has shape {tuple(self.centre.shape)}")
        for side, factor, ranks, values in (
            ("keep", self.keep, self.keep_rank, self.keep_values),
            ("drop", self.drop, self.drop_rank, self.drop_values),
        ):
            k = factor.shape[-1]
            if tuple(factor.shape) != (units, d, k) or ranks.shape != (units,) or values.shape != (units, d):
                raise ValueError(f"{side}, its ranks and its values have shapes that do not belong together")
            if ranks.is_floating_point() or not ((ranks >= 0) & (ranks <= min(k, d))).all():
                raise ValueError(f"{side} has ranks {ranks.tolist()}: expected 0 to {min(k, d)}")
            if not (values >= 0).all() or not (values.diff(dim=-1) <= 0).all():
                raise ValueError(f"the singular values of {side} are not descending sizes")
            inside = (torch.arange(k) < ranks[:, None]).to(factor)
            error = (factor.mT @ factor - torch.diag_embed(inside)).abs()
            if error.numel() and error.max() > ORTHONORMAL:
                raise ValueError(f"the columns of {side} are not orthonormal (off by {error.max():.1e})")

    def reversed(self) -> "Subspaces":
        """Positive and negative with their roles swapped."""
        return Subspaces(
            self.drop, self.keep, self.drop_rank, self.keep_rank, self.drop_values, self.keep_values, self.centre
        )

    def projections(self) -> tuple[Float[Tensor, "units d d"], Float[Tensor, "units d d"]]:
        """(P⁺, P⁻) of each unit as full matrices: P⁺ = U⁺U⁺ᵀ and P⁻ = I − U⁻U⁻ᵀ."""
        pattern = "units i k, units j k -> units i j"
        identity = torch.eye(self.keep.shape[1], dtype=self.keep.dtype, device=self.keep.device)
        return einsum(self.keep, self.keep, pattern), identity - einsum(self.drop, self.drop, pattern)


def leading_subspace(
    omega: Float[Tensor, "units d d"],
    ranks_of: Callable[[Float[Tensor, "units d"]], Int[Tensor, " units"]],
) -> tuple[Float[Tensor, "units d k"], Int[Tensor, " units"], Float[Tensor, "units d"]]:
    """Leading left singular vectors of Ω, their number, and all singular values.

    Args:
        omega: cross-covariance of each unit.
        ranks_of: how many are taken, given the singular values (`sizes.Size.ranks`).

    Raises:
        ActivationError: Ω has overflowed, or is zero, so that no direction has any energy.
    """
    if not torch.isfinite(omega).all():
        raise ActivationError("the cross-covariance overflows: these activations are too large to fit from")
    left, values, _ = torch.linalg.svd(omega)
    if not (values[:, 0] > 0).all():
        raise ActivationError("the cross-covariance is zero: these activations carry nothing to fit from")
    # The sign of a singular vector is arbitrary and differs between LAPACK builds: make its largest entry positive.
    largest = left.abs().argmax(dim=-2, keepdim=True)
    left = left * left.gather(-2, largest).sign()
    ranks = ranks_of(values)
    widest = int(ranks.max())
    inside = rearrange(torch.arange(widest), "k -> 1 k") < rearrange(ranks, "units -> units 1")
    return left[:, :, :widest] * rearrange(inside, "units k -> units 1 k").to(left), ranks, values


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
    size = torch.linalg.vector_norm(x.detach(), 1, dim=-1, keepdim=True).clamp_(tiny, 1 / tiny)
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
    if isinstance(strength, Tensor):
        strength = rearrange(strength.to(x), "... -> ... 1")
    return saturate((unit_x + strength * (edited - unit_x)) * scale)


def _edit_linearly(
    x: Float[Tensor, "*batch units d"],
    subspaces: Subspaces,
    strength: float | int | Float[Tensor, "..."],
    combine: str,
) -> Float[Tensor, "*batch units d"]:
    """`edit_activation` where φ is the identity, nothing is centred and no gradient is wanted.

    This is what runs at every token of every edited layer. A power of two changes no rounding, so that every step is
    the one of the general way, whether it is taken at the scale of x or at scale one (docs/method.md 3.6). The code
    works in few buffers of the size of x, since fresh memory costs more than the arithmetic.
    """
    unit, scale, squares = x, None, x.square()
    x_norm = squares.sum(dim=-1, keepdim=True).sqrt_()
    if not _are_moderate(x_norm, strength):
        scale = power_of_two_scale(x)
        unit = x / scale
        x_norm = torch.mul(unit, unit, out=squares).sum(dim=-1, keepdim=True).sqrt_()
    # Twice the y of the general way where it has two terms; only the direction counts.
    halves = 1 if combine in ("positive_only", "negative_only") else 2
    if combine == "positive_only":
        y = _onto(unit, subspaces.keep)
    else:
        dropped = _onto(unit, subspaces.drop)
        y = torch.sub(unit, dropped, out=dropped)
        if combine != "negative_only":
            y.add_(_onto(unit, subspaces.keep))
    y_norm = torch.mul(y, y, out=squares).sum(dim=-1, keepdim=True).sqrt_()
    vanished = y_norm <= halves * ROUNDINGS * torch.finfo(x.dtype).eps * x_norm
    # What was projected away has no direction to go to and stays as it is.
    if isinstance(strength, Tensor):
        weight = torch.where(vanished, 0.0, rearrange(strength.to(x), "... -> ... 1"))
    else:
        weight = torch.full_like(y_norm, strength).masked_fill_(vanished, 0.0)
    y.mul_(x_norm / y_norm.masked_fill_(vanished, 1.0))
    y.sub_(unit).mul_(weight).add_(unit)
    largest = torch.finfo(x.dtype).max
    return y if scale is None else y.mul_(scale).clamp_(-largest, largest)


def _are_moderate(norms: Float[Tensor, "*batch 1"], strength: float | int | Float[Tensor, "..."]) -> bool:
    """Whether vectors of these norms can do without a scale: none vanishes, and the edited ones cannot overflow."""
    # Any other device would have to be waited for.
    if norms.device.type != "cpu" or isinstance(strength, Tensor) or norms.numel() == 0:
        return False
    low, high = (end.item() for end in norms.aminmax())
    return low >= 2**-30 and high <= 2**30 and abs(strength) <= 2**30


def _onto(unit: Float[Tensor, "*batch units d"], factor: Float[Tensor, "units d k"]) -> Float[Tensor, "*batch units d"]:
    """U Uᵀ x as two thin products."""
    if len(factor) == 1:
        return unit @ factor[0] @ factor[0].T
    coordinates = einsum(unit, factor, "... units d, units d k -> ... units k")
    return einsum(coordinates, factor, "... units k, units d k -> ... units d")


def random_subspaces(like: Subspaces, generator: torch.Generator) -> Subspaces:
    """Subspaces of the same ranks whose directions are drawn uniformly: the control of docs/method.md 6.8."""
    factors = []
    for factor, ranks in ((like.keep, like.keep_rank), (like.drop, like.drop_rank)):
        gaussian = torch.randn(factor.shape, generator=generator, dtype=factor.dtype)
        orthonormal = torch.linalg.qr(gaussian).Q
        columns = torch.arange(factor.shape[-1])
        inside = rearrange(columns, "k -> 1 1 k") < rearrange(ranks, "units -> units 1 1")
        factors.append((orthonormal * inside).to(factor.device))
    return Subspaces(
        factors[0], factors[1], like.keep_rank, like.drop_rank, like.keep_values, like.drop_values, like.centre
    )
