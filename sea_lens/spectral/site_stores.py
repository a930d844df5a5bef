"""A folder with a store for each of several sites, filled in one pass over the demonstrations (docs/method.md 2.2).

Each store is one by itself: it can be opened, gone on with and deleted without the others.
"""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from .._support.regular_files import check_name
from ..errors import FileError
from ..models.sites import SITES
from .covariance import CrossCovariance
from .store import Store, begin_store, check_store, is_store


def store_folders(folder: str | os.PathLike[str], site: str | Sequence[str]) -> list[Path]:
    """Where the activations of a site are kept, which is the folder itself, or those of several: in its name each.

    Raises:
        FileError: one of them, or the folder that they lie in, is a file or holds something else.
    """
    if isinstance(site, str):
        check_store(folder)
        return [check_name(folder)]
    path = check_name(folder)
    if is_store(path):
        raise FileError(f"{folder} holds a capture of one site: expected a folder for those of several, or none")
    check_store(path, known=SITES)
    folders = [path / name for name in site]
    for one in folders:
        check_store(one)
    return folders


def begin_stores(
    folders: Sequence[Path], captures: Sequence[CrossCovariance], batches: Sequence[Sequence[int]]
) -> list[Store]:
    """A store for each capture, as `begin_store`; errors as there.

    Args:
        folders: of each of them.
        captures: what they will hold, without statistics yet.
        batches: demonstrations in the batches in which they are read.
    """

    def begun(place: int) -> Store:
        one = captures[place]
        return begin_store(folders[place], one.layers, one.site, one.provenance, batches, one.statistics.layout)

    # What is there comes first, so that nothing is begun beside a store of another capture.
    order = sorted(range(len(folders)), key=lambda place: not is_store(folders[place]))
    stores = {place: begun(place) for place in order}
    return [stores[place] for place in range(len(folders))]


def whole_shards(stores: Sequence[Store]) -> list[list[int]]:
    """Numbers of batches in runs that no shard of any store reaches beyond, so that processes can share them out.

    The shards of two stores differ where their activations do in size.
    """
    ends = set.intersection(*({shard[-1] for shard in store.batches} for store in stores))
    starts = [0, *(end + 1 for end in sorted(ends))]
    return [list(range(start, stop)) for start, stop in itertools.pairwise(starts)]
