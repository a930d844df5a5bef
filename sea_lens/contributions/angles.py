"""How the subspaces of an edit lie to each other and to those of other edits (docs/method.md 8.6)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer
from ..edits.base import Edit
from ..errors import InputError, MismatchError
from ..methods.ablated_direction import DirectionalAblation
from ..methods.concept_erasure import LEACE
from ..methods.covariance_ratios import GeneralisedEigen
from ..methods.plane_rotation import AngularSteering
from ..methods.steering import Steering
from ..spectral.edit import SpectralEdit
from ..spectral.principal import cosines
from .direction_parts import spectral_edit

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

DRAWS = 20
# What else than an edit can be compared with: a direction, or some as rows, for each layer.
Directions = Mapping[int, Tensor]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two subspaces of one unit, or of two layers.

    Attributes:
        between: "sides" of the edit, its "layers", or two "edits".
        layer, head: of the first; no head where the layer is one unit.
        subspace: which of the edit's, "kept" or "dropped".
        other: place of the other edit among those given; 0 where there is none.
        other_layer, other_subspace: of the second.
        angles: the principal angles in degrees, the smallest first; as many as the smaller subspace has dimensions.
        dimensions: of both, and of what they lie in.
        random: the same angles of random subspaces of these dimensions, one row a draw.
    """

    between: str
    layer: int
    head: int | None
    subspace: str
    other: int
    other_layer: int
    other_subspace: str
    angles: Float[np.ndarray, " n"]
    dimensions: tuple[int, int, int]
    random: Float[np.ndarray, "draws n"]

    @property
    def overlap(self) -> float:
        """Mean of cos² of the angles: the share of the smaller subspace that lies in the larger one."""
        return float(np.square(np.cos(np.radians(self.angles))).mean()) if len(self.angles) else float("nan")

    @property
    def random_overlap(self) -> float:
        """What it is on average for random subspaces: the larger dimension over that of the whole space."""
        return max(self.dimensions[:2]) / self.dimensions[2]


@dataclass(frozen=True, eq=False)
class Geometry:
    """Principal angles between subspaces, from `geometry`.

    Attributes:
        pairs: every two that were compared.
    """

    pairs: tuple[Pair, ...]

    def angles(self, layer: int, head: int | None = None, *, between: str = "sides") -> Float[np.ndarray, " n"]:
        """The principal angles of the first pair of a layer, in degrees, the smallest first.

        Raises:
            InputError: there is no such pair.
        """
        for pair in self.pairs:
            if (pair.between, pair.layer, pair.head) == (between, layer, head):
                return pair.angles
        raise InputError(f"no angles between {between!r} of layer {layer}{'' if head is None else f', head {head}'}")

    def to_frame(self) -> "pd.DataFrame":
        """One row for each two subspaces.

        Columns: between, layer, head (missing but at site `z`), subspace, other, other_layer, other_subspace,
        dimensions and other_dimensions, smallest, median and largest angle in degrees, overlap (mean of cos², the share
        of the smaller that lies in the larger), random_overlap (what it is on average for random subspaces).
        """
        import pandas as pd

        rows = [
            {
                "between": pair.between,
                "layer": pair.layer,
                "head": pair.head,
                "subspace": pair.subspace,
                "other": pair.other,
                "other_layer": pair.other_layer,
                "other_subspace": pair.other_subspace,
                "dimensions": pair.dimensions[0],
                "other_dimensions": pair.dimensions[1],
                "smallest": pair.angles.min(initial=90.0),
                "median": float(np.median(pair.angles)) if len(pair.angles) else float("nan"),
                "largest": pair.angles.max(initial=0.0),
                "overlap": pair.overlap,
                "random_overlap": pair.random_overlap,
            }
            for pair in self.pairs
        ]
        return pd.DataFrame(rows).astype({"head": "Int64"})

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Angles of every layer in ascending order, beside those of random subspaces: to other edits where given."""
        from ..plots.edits import principal_angles

        compared = "edits" if any(pair.between == "edits" for pair in self.pairs) else "sides"
        shown = [pair for pair in self.pairs if pair.between == compared]
        lines = [(pair.layer, f"{pair.subspace} to {pair.other_subspace}", pair.angles) for pair in shown]
        title = "Kept and dropped subspaces" if compared == "sides" else "Subspaces of two edits"
        return principal_angles(lines, [pair.random for pair in shown], f"Principal angles: {title.lower()}", ax=ax)

    def __str__(self) -> str:
        parts = []
        for between in dict.fromkeys(pair.between for pair in self.pairs):
            found = [pair for pair in self.pairs if pair.between == between and len(pair.angles)]
            if found:
                overlaps = [pair.overlap for pair in found]
                random = [pair.random_overlap for pair in found]
                parts.append(
                    f"{between}: overlap {min(overlaps):.2f} to {max(overlaps):.2f} (random subspaces "
                    f"{min(random):.2f} to {max(random):.2f}) over {len(found)} pairs"
                )
        return f"Geometry: {'; '.join(parts)}"


def geometry(
    edit: Edit,
    other: "Edit | Directions | Iterable[Edit | Directions] | None" = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Geometry:
    """Principal angles between an edit's subspaces, and to those of others (docs/method.md 8.6).

    Args:
        edit: a spectral edit.
        other: what to compare it with, layer by layer: another spectral edit (such as `sl.permuted` and `sl.resampled`
            give), an edit of another method that has directions (mean differences, ITI, LEACE, directional ablation,
            generalised eigenvectors, angular steering); or a mapping from layers to directions, (d,) or (n, d), at site
            `z` (heads, d) or (heads, n, d), such as those of probes; or several of these.
        draws: how many random subspaces of the same dimensions stand beside each pair.
        seed: of the draws.

    Returns:
        Without another: U⁺ and U⁻ of each layer ("sides"), and the same side of every two layers ("layers"; not at site
        `z`, whose heads lie in spaces of their own). With others: every subspace of the edit and each of theirs
        ("edits").

    Raises:
        InputError: the edit is not spectral, an other has no directions, or acts in none of its layers.
        MismatchError: another is of another width, site or feature map, whose subspaces lie in another space.

    Example:
        >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
        >>> sl.geometry(edit).to_frame()["between"].value_counts().to_dict()
        {'layers': 6, 'sides': 3}
    """
    edit = spectral_edit(edit)
    draws, seed = as_integer(draws, "draws", least=0), as_integer(seed, "seed")
    rng = np.random.default_rng(seed)
    drawn: dict[tuple[int, int, int], Float[np.ndarray, "draws n"]] = {}

    def pair(between: str, place: tuple[int, int], one: tuple[str, Tensor], to: tuple[int, int, str, Tensor]) -> Pair:
        layer, unit = place
        other_place, other_layer, other_name, factor = to
        dimensions = one[1].shape[1], factor.shape[1], one[1].shape[0]
        if dimensions not in drawn:
            drawn[dimensions] = _random_angles(dimensions, draws, rng)
        angles = _degrees(cosines(one[1], factor.to(one[1])))
        head = unit if edit.at.per_head else None
        return Pair(
            between, layer, head, one[0], other_place, other_layer, other_name, angles, dimensions, drawn[dimensions]
        )

    if not (other is None or isinstance(other, Iterable)) and not isinstance(other, Edit):
        raise InputError(f"expected an edit, or directions by layer, got {type(other).__name__}")
    given = [] if other is None else [other] if isinstance(other, (Edit, Mapping)) else list(other)
    pairs = []
    for place, one in enumerate(given):
        common = _common_layers(edit, one)
        for layer in common:
            for unit in range(edit.shape[0]):
                for mine in _subspaces(edit, layer, unit):
                    for theirs in _subspaces(one, layer, unit):
                        _check_width(mine[1], theirs[1])
                        pairs.append(pair("edits", (layer, unit), mine, (place, layer, *theirs)))
    if not given:
        for layer in edit.layers:
            for unit in range(edit.shape[0]):
                kept, dropped = _subspaces(edit, layer, unit)
                pairs.append(pair("sides", (layer, unit), kept, (0, layer, *dropped)))
        later = [] if edit.at.per_head else [(a, b) for a in edit.layers for b in edit.layers if a < b]
        for layer, behind in later:
            for mine, theirs in zip(_subspaces(edit, layer, 0), _subspaces(edit, behind, 0), strict=True):
                pairs.append(pair("layers", (layer, 0), mine, (0, behind, *theirs)))
    return Geometry(tuple(pairs))


def _common_layers(edit: SpectralEdit, other: Any) -> list[int]:
    if isinstance(other, Edit):
        layers, site = set(other.layers), other.site
        if site != edit.site:
            raise MismatchError(f"the other edit acts at {site!r}, this one at {edit.site!r}: expected the same site")
    elif isinstance(other, Mapping):
        layers = set(other)
    else:
        raise InputError(f"expected an edit, or directions by layer, got {type(other).__name__}")
    mine, theirs = edit.feature.name, other.feature.name if isinstance(other, SpectralEdit) else "identity"
    if mine != theirs:
        raise MismatchError(f"one has directions of activations through {theirs!r}, this edit through {mine!r}")
    if not layers & set(edit.layers):
        raise InputError(f"the other is for layers {sorted(layers)}, this edit for {list(edit.layers)}: none in common")
    return sorted(layers & set(edit.layers))


def _subspaces(edit: Any, layer: int, unit: int) -> Iterator[tuple[str, Float[Tensor, "d k"]]]:
    """What a method reads or writes in one unit: names, and orthonormal bases in float64."""
    if isinstance(edit, SpectralEdit):
        one = edit.subspaces[layer]
        yield "kept", one.keep[unit, :, : int(one.keep_rank[unit])].double()
        yield "dropped", one.drop[unit, :, : int(one.drop_rank[unit])].double()
    elif isinstance(edit, Steering):
        yield "added", _basis(edit.vectors[layer][unit : unit + 1])
    elif isinstance(edit, LEACE):
        eraser = edit.erasers[layer]
        yield "erased", _basis(eraser.left[unit : unit + 1])
        yield "measured", _basis(eraser.right[unit : unit + 1])
    elif isinstance(edit, DirectionalAblation):
        yield "ablated", _basis(edit.directions[layer].direction[unit : unit + 1])
    elif isinstance(edit, GeneralisedEigen):
        yield "measured", _basis(edit.eigenvectors[layer].filters[unit].T)
    elif isinstance(edit, AngularSteering):
        plane = edit.planes[layer]
        yield "plane", _basis(torch.stack([plane.first[unit], plane.second[unit]]))
    elif isinstance(edit, Mapping):
        given = torch.as_tensor(edit[layer])
        rows = given if given.ndim < 3 and unit == 0 else given[unit]
        yield "given", _basis(rows[None] if rows.ndim == 1 else rows)
    else:
        raise InputError(
            f"{type(edit).__name__} has no directions to compare: expected a spectral edit, mean differences, ITI, "
            f"LEACE, directional ablation, generalised eigenvectors, angular steering, or a mapping from layers to "
            f"directions"
        )


def _basis(rows: Float[Tensor, "n d"]) -> Float[Tensor, "d k"]:
    """An orthonormal basis of what the rows span; empty where they are zero."""
    left, values, _ = torch.linalg.svd(rows.double().T, full_matrices=False)
    return left[:, values > 1e-10 * values.max().clamp(min=1e-300)]


def _check_width(mine: Float[Tensor, "d k"], theirs: Tensor) -> None:
    if len(mine) != len(theirs):
        raise MismatchError(f"the other's directions have {len(theirs)} entries, this edit's {len(mine)}")


def _degrees(found: Float[Tensor, " n"]) -> Float[np.ndarray, " n"]:
    return np.degrees(np.arccos(found.cpu().numpy()))


def _random_angles(
    dimensions: tuple[int, int, int], draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "draws n"]:
    """Angles of random subspaces; one of the two may stand still."""
    small, large, width = min(dimensions[:2]), max(dimensions[:2]), dimensions[2]
    fixed = torch.eye(width, large, dtype=torch.float64)
    bases = [torch.from_numpy(np.linalg.qr(rng.normal(size=(width, small))).Q) for _ in range(draws)]
    return np.stack([_degrees(cosines(fixed, basis)) for basis in bases]) if bases else np.zeros((0, small))
