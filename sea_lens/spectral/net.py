"""The directions that a linear edit really changes: eigenvectors of U⁺U⁺ᵀ − U⁻U⁻ᵀ (docs/method.md 8.5). Tensors only.

Kept and dropped subspaces overlap as a rule, and what they share cancels. Their difference is a symmetric matrix whose
eigenvalues are 1 and −1 for directions of one side alone, ± sin θ for each principal angle θ between the two, and else
0. In its eigenvectors, which are orthogonal, nothing cancels.
"""

from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .subspaces import Subspaces

# Eigenvalues up to here are rounding: what both sides contain is not edited.
ROUNDING = 1e-9
# Neighbours nearer to each other than this have no directions of their own, only a plane that they span.
CLOSE = 1e-4


def net_subspaces(subspaces: Subspaces, combine: str) -> tuple[Subspaces, str]:
    """The same edit written in its net directions.

    Args:
        subspaces: U⁺ and U⁻.
        combine: as in `edit_activation`.

    Returns:
        Factors N⁺ and N⁻ in the place of U⁺ and U⁻, with N⁺N⁺ᵀ − N⁻N⁻ᵀ the same difference: their columns are the
        eigenvectors of positive and of negative eigenvalue, each as long as the root of the eigenvalue's size, the
        largest first. With one side alone they are its columns, whose eigenvalues are all 1 or −1. And the way to
        combine them: what "reverse" does is "norm" of the two sides swapped.
    """
    if combine == "reverse":
        return net_subspaces(subspaces.reversed(), "norm")
    nothing = torch.zeros_like(subspaces.keep[..., :0])
    none = torch.zeros_like(subspaces.keep_rank)
    if combine == "positive_only":
        return replace(subspaces, drop=nothing, drop_rank=none), combine
    if combine == "negative_only":
        return replace(subspaces, keep=nothing, keep_rank=none), combine
    sides = [_net(*pair) for pair in zip(subspaces.keep, subspaces.drop, strict=True)]
    keep, drop = ([pair[side] for pair in sides] for side in range(2))
    ranks = [torch.tensor([len(one.T) for one in factors]) for factors in (keep, drop)]
    return replace(subspaces, keep=_padded(keep), drop=_padded(drop), keep_rank=ranks[0], drop_rank=ranks[1]), combine


def _net(
    keep: Float[Tensor, "d k_keep"], drop: Float[Tensor, "d k_drop"]
) -> tuple[Float[Tensor, "d n_raised"], Float[Tensor, "d n_lowered"]]:
    """N⁺ and N⁻ of one unit."""
    # In an orthonormal basis of both sides the matrix is small.
    basis = torch.linalg.qr(torch.cat([keep, drop], -1)).Q
    kept, dropped = basis.mT @ keep, basis.mT @ drop
    values, vectors = torch.linalg.eigh(kept @ kept.mT - dropped @ dropped.mT)
    # The sign of an eigenvector is arbitrary: make its largest entry positive.
    vectors = basis @ vectors
    if vectors.numel():
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    scaled = vectors * values.abs().sqrt()
    # eigh sorts ascending.
    return scaled[:, values > ROUNDING].flip(-1), scaled[:, values < -ROUNDING]


def _padded(factors: list[Float[Tensor, "d _"]]) -> Float[Tensor, "units d k"]:
    widest = max(factor.shape[-1] for factor in factors)
    return torch.stack([torch.nn.functional.pad(factor, (0, widest - factor.shape[-1])) for factor in factors])


def eigenvalue_sizes(factor: Float[Tensor, "units d k"]) -> Float[Tensor, "units k"]:
    """|λ| of each column of N⁺ or N⁻: its squared length."""
    return factor.square().sum(-2)


def planes(sizes: Float[Tensor, " k"]) -> list[tuple[int, int]]:
    """Which columns belong together since their eigenvalues are equal or close: (first, how many), by `CLOSE`."""
    if len(sizes) == 0:
        return []
    starts = torch.cat([torch.tensor([True]), (sizes[:-1] - sizes[1:]).cpu() > CLOSE])
    firsts = rearrange(starts.nonzero(), "n 1 -> n").tolist()
    return [(first, after - first) for first, after in zip(firsts, [*firsts[1:], len(sizes)], strict=True)]
