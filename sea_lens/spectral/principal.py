"""Principal angles between subspaces, and an edit of fewer directions (docs/method.md 8.5 and 8.6). Tensors only."""

from dataclasses import replace
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .subspaces import Subspaces


def cosines(one: Float[Tensor, "d k"], other: Float[Tensor, "d m"]) -> Float[Tensor, " n"]:
    """Cosines of the principal angles between two subspaces with orthonormal bases, the smallest angle first.

    The cosine of a small angle tells it to half of the digits alone, which is far finer than an angle is read.
    """
    if 0 in (one.shape[-1], other.shape[-1]):
        return one.new_zeros(0)
    return torch.linalg.svdvals(one.mT @ other).clamp(max=1.0)


def truncated_subspaces(subspaces: Subspaces, k: int) -> Subspaces:
    """The k principal planes of U⁺ and U⁻ of the largest angle, of each unit.

    A plane is spanned by a direction of U⁺ and one of U⁻ that lie at a principal angle to each other. What one side
    has more of lies at a right angle to all of the other, and comes first, each direction by itself. Planes are
    orthogonal to each other, so that the difference of the two projections is the sum of those of its planes.
    """
    units = range(len(subspaces.keep))
    sides = [_sides(subspaces, unit, k) for unit in units]
    stacked: dict[str, Tensor] = {}
    for place, side in enumerate(("keep", "drop")):
        factors, values, energies = zip(*(of_unit[place] for of_unit in sides), strict=True)
        width = max(factor.shape[-1] for factor in factors)
        # The widest factor has as many values at least, and no value stands for a column of zeros.
        stacked |= {
            side: torch.stack([_padded(factor, width) for factor in factors]),
            f"{side}_values": torch.stack([_padded(one, max(width, 1)) for one in values]),
            f"{side}_rank": torch.tensor([factor.shape[-1] for factor in factors]),
            f"{side}_energy": torch.stack(energies),
        }
    return replace(subspaces, **stacked)


def _padded(x: Float[Tensor, "*rows k"], width: int) -> Float[Tensor, "*rows width"]:
    return torch.nn.functional.pad(x, (0, width - x.shape[-1]))


class Taken(NamedTuple):
    """What is left of one side of a unit.

    Attributes:
        factor: orthonormal columns.
        values: the length of Ωᵀ along each, descending.
        energy: sum of all squared singular values of Ω over the largest square of these.
    """

    factor: Float[Tensor, "d n"]
    values: Float[Tensor, " n"]
    energy: Float[Tensor, ""]


def _sides(subspaces: Subspaces, unit: int, k: int) -> tuple[Taken, Taken]:
    ranks = int(subspaces.keep_rank[unit]), int(subspaces.drop_rank[unit])
    keep, drop = subspaces.keep[unit, :, : ranks[0]], subspaces.drop[unit, :, : ranks[1]]
    left, _, right = torch.linalg.svd(keep.mT @ drop)
    # Descending cosines: the last pairs have the largest angles, and behind them stands what only one side has.
    pairs, alone = min(ranks), max(ranks) - min(ranks)
    kept_alone = min(k, alone) if ranks[0] > ranks[1] else 0
    dropped_alone = min(k, alone) if ranks[1] > ranks[0] else 0
    paired = torch.arange(max(pairs - max(k - alone, 0), 0), pairs)
    return (
        _taken(keep, subspaces.keep_values[unit], subspaces.keep_energy[unit], left, paired, pairs, kept_alone),
        _taken(drop, subspaces.drop_values[unit], subspaces.drop_energy[unit], right.mT, paired, pairs, dropped_alone),
    )


def _taken(
    factor: Float[Tensor, "d k"],
    values: Float[Tensor, " m"],
    energy: Float[Tensor, ""],
    turn: Float[Tensor, "k k"],
    paired: Tensor,
    pairs: int,
    alone: int,
) -> Taken:
    columns = torch.cat([paired, torch.arange(pairs, pairs + alone)]).to(turn.device)
    chosen = turn[:, columns]
    along = (chosen * rearrange(values[: factor.shape[-1]].to(chosen), "k -> k 1")).norm(dim=0)
    order = along.argsort(descending=True)
    largest = along.max() if len(along) else along.new_ones(())
    total = energy.to(along) * values[0].to(along).square()
    return Taken((factor @ chosen)[:, order], along[order].to(values), (total / largest.square()).to(energy))
