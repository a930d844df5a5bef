"""The projections that SEA's released code saves: a pair of files, `…uu_positive.pt` and `…uu_negative.pt`.

Each holds (layers, d, d) numbers, P⁺ and P⁻ of docs/method.md 3.1: the first is U⁺U⁺ᵀ, the second I − U⁻U⁻ᵀ. They are
factored back by their eigenvectors; the files have neither singular values nor how many demonstrations there were.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float64
from torch import Tensor

from .._support.foreign_files import as_floats, as_foreign, read_torch_file
from .._support.versions import versions
from ..errors import FileError, SeaLensWarning
from ..spectral.edit import SpectralEdit
from ..spectral.features import feature_map
from ..spectral.ranks import RankOfEach
from ..spectral.singular import Spectrum
from ..spectral.subspaces import Side, Subspaces

_NAMES = "uu_positive.pt", "uu_negative.pt"
# How far an eigenvalue of a projection may be from 0 and from 1: float32 leaves 1e-6, half precision 1e-3.
TOLERANCE = 1e-3


def released_pair(path: Path) -> tuple[Path, Path] | None:
    """The two files that a folder or one of them stands for; None where they are not called so.

    Raises:
        FileError: the folder has several pairs, or the other file is missing.
    """
    if path.is_dir():
        found = sorted({begin for one in path.iterdir() if (begin := _begin(one.name)) is not None})
        if len(found) > 1:
            raise FileError(
                f"{path} has files {', '.join(f'{begin}{_NAMES[0]}' for begin in found)}: expected the path of one"
            )
        folder = path
    else:
        found, folder = [begin for begin in [_begin(path.name)] if begin is not None], path.parent
    if not found:
        return None
    first, second = (folder / f"{found[0]}{name}" for name in _NAMES)
    for one in (first, second):
        if not one.exists():
            raise FileError(f"{one}: no such file, and SEA's released projections are {first.name} and {second.name}")
    return first, second


def read_released(pair: tuple[Path, Path]) -> SpectralEdit:
    """The spectral edit, linear and at site `mlp_out`, whose projections these files hold.

    Its singular values are those of the projections, all 1.

    Raises:
        FileError: damaged, or matrices that are no projections.

    Warns:
        SeaLensWarning: the released code's own layer does something else with them.
    """
    kept, dropped = (_matrices(path) for path in pair)
    if kept.shape != dropped.shape:
        raise FileError(f"{pair[0]} has shape {tuple(kept.shape)} and {pair[1].name} {tuple(dropped.shape)}")
    subspaces = {}
    for layer in range(len(kept)):
        # P⁻ drops its null space.
        keep, drop = _side(pair[0], kept[layer], layer, 1), _side(pair[1], dropped[layer], layer, 0)
        subspaces[layer] = Subspaces.of(keep, drop)
    ranks = {layer: (int(one.keep_rank), int(one.drop_rank)) for layer, one in subspaces.items()}
    # The released code squares singular values; what it was asked for is not in the files, its ranks are.
    size = RankOfEach(2.0, ranks)
    source = {"file": str(pair[0]), "format": "SEA's released projections"}
    model = {"n_layers": len(kept), "d_model": kept.shape[-1], "processing": []}
    edit = SpectralEdit(
        site="mlp_out",
        subspaces=subspaces,
        feature=feature_map("identity"),
        options={"centre": False, "spectrum_power": size.power, **size.record},
        n=None,
        signatures=None,
        provenance={"source": source, "model": model, "versions": versions()},
    )
    warnings.warn(
        f"{pair[0]}: the released code's own layer takes norms of each coordinate over tokens, and throws its feature "
        "map away but for the inverse; here the norm of each token is kept, and the edit is linear (docs/method.md 11; "
        "sea_lens.paper.released has the other)",
        SeaLensWarning,
        stacklevel=4,
    )
    return edit


def _begin(name: str) -> str | None:
    """What stands in front of the part that all such files are called: "" or "no_mean_sub_", say."""
    return next((name.removesuffix(one) for one in _NAMES if name.endswith(one)), None)


def _matrices(path: Path) -> Float64[Tensor, "layers d d"]:
    content: Any = read_torch_file(path, [])
    with as_foreign(path, "SEA's released projections"):
        found = as_floats(content, "it")
        if found.ndim != 3 or found.shape[1] != found.shape[2] or not found.numel():
            raise ValueError(f"it has shape {tuple(found.shape)}, expected (layers, d, d)")
        return found


def _side(path: Path, matrix: Float64[Tensor, "d d"], layer: int, eigenvalue: int) -> Side:
    """The eigenvectors of a projection to an eigenvalue, 0 or 1."""
    with as_foreign(path, "SEA's released projections"):
        skew = float((matrix - matrix.mT).abs().max())
        values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
        off = max(skew, float(torch.minimum(values.abs(), (values - 1).abs()).max()))
        if off > TOLERANCE:
            raise ValueError(
                f"the matrix of layer {layer} is no projection: symmetric with eigenvalues 0 and 1, from which it is "
                f"{off:.1e} away"
            )
    factor = vectors[:, values.round() == eigenvalue]
    # The sign of an eigenvector is arbitrary: its largest entry is positive, as in a fit.
    factor = factor * factor.gather(0, factor.abs().argmax(dim=0, keepdim=True)).sign() if factor.numel() else factor
    k = factor.shape[-1]
    ones = torch.ones(1, k, dtype=torch.float64) if k else torch.zeros(1, 1, dtype=torch.float64)
    return Side(rearrange(factor, "d k -> 1 d k").contiguous(), torch.tensor([k]), Spectrum.whole(ones))
