"""Activations of a capture, kept in a folder: shards of demonstrations, each a file, written whole or not at all.

`capture.json` says what is captured and which demonstrations are in which shard, before the first of them is read. So a
capture that was interrupted goes on where it was, several processes can share the shards out, and a fit reads one layer
of all shards at a time.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.json_files import plain, read_sealed_json, write_sealed_json
from .._support.regular_files import check_name, why
from .._support.storage import TensorFile, as_file_errors, write_tensors
from ..errors import FileError, MismatchError
from .layer_statistics import Three
from .runs import comparable, refuse_other_run
from .statistics import Activations, Part, stacked

KIND = "capture"
_SHARD = "activations of a capture"
_INDEX = "capture.json"
# Numbers in a shard, which is in memory while it is filled and written: little beside any model. One of a large model
# has some batches' worth all the same, so that the files are not too many.
SHARD_NUMBERS = 2**20
FEWEST = 32


@dataclass(frozen=True, eq=False)
class InFile(Part):
    """Activations of one shard, of which a layer at a time is read.

    Attributes:
        file: the shard.
        layers: what its layers are called.
    """

    file: TensorFile
    layers: tuple[int, ...]

    @property
    def n(self) -> int:
        return self.layout_and_n[1]

    @property
    def layout(self) -> tuple[int, int, int]:
        return self.layout_and_n[0]

    @cached_property
    def layout_and_n(self) -> tuple[tuple[int, int, int], int]:
        """(layers, units, d), and the number of demonstrations.

        Raises:
            ValueError: the tensors do not belong together.
        """
        names = {_name(layer, kind) for layer in self.layers for kind in Three._fields}
        shapes = {shape for shape, _ in self.file.shapes.values()}
        if set(self.file.shapes) != names or len(shapes) != 1 or len(shape := next(iter(shapes))) != 3:
            raise ValueError(f"it holds {sorted(self.file.shapes)[:4]}, of shapes {sorted(shapes)[:4]}")
        n, units, d = shape
        return (len(self.layers), units, d), n

    def check_form(self) -> None:
        _ = self.layout_and_n

    def layer(self, index: int) -> Three:
        return Three(*(self.file.tensor(_name(self.layers[index], kind)) for kind in Three._fields))


@dataclass(frozen=True, eq=False)
class Store:
    """A folder of captured activations.

    Attributes:
        folder: where it is.
        content: of `capture.json`.
    """

    folder: Path
    content: Mapping[str, Any]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are captured."""
        return tuple(self.content["layers"])

    @property
    def site(self) -> str:
        """The site of the activations."""
        return self.content["site"]

    @property
    def provenance(self) -> dict[str, Any]:
        """Of what will be fitted to them."""
        return self.content["provenance"]

    @property
    def batches(self) -> list[list[int]]:
        """Numbers of the batches of each shard."""
        return self.content["shards"]

    @cached_property
    def shards(self) -> list[list[int]]:
        """The demonstrations of each shard, in the order in which they are read."""
        return [[index for number in shard for index in self.content["batches"][number]] for shard in self.batches]

    def missing(self) -> list[int]:
        """Numbers of the shards that are yet to be written."""
        return [number for number in range(len(self.shards)) if not self._path(number).exists()]

    def write(self, number: int, activations: Sequence[Float[Tensor, "n layers units d"]]) -> None:
        """Write one shard: its activations before φ, neutral, positive and negative.

        Raises:
            FileError: the file cannot be written.
        """
        three = stacked(activations)
        tensors = {
            _name(layer, kind): values[index]
            for kind, values in three._asdict().items()
            for index, layer in enumerate(self.layers)
        }
        write_tensors(self._path(number), tensors, kind=_SHARD, header=self._header(number), by_any=True)

    def read(self) -> Activations:
        """All activations; they stay where they are until a layer is asked for.

        Raises:
            FileError: a shard is missing, damaged, or of another capture.
        """
        absent = [number for number in range(len(self.shards)) if not self._path(number).exists()]
        if absent:
            raise FileError(
                f"{self.folder}: the capture has not ended, {len(absent)} of {len(self.shards)} shards are missing "
                f"(capture with the same store= goes on)"
            )
        parts = tuple(self._part(number) for number in range(len(self.shards)))
        order = torch.tensor([index for shard in self.shards for index in shard])
        return Activations(parts[0].layout, parts, order)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}-of-{len(self.shards):05d}.safetensors"

    def _header(self, number: int) -> dict[str, Any]:
        return {"capture": self.content["id"], "shard": number}

    def _part(self, number: int) -> InFile:
        path = self._path(number)
        file = TensorFile(path, kind=_SHARD)
        with as_file_errors(path):
            part = InFile(file, self.layers)
            part.check_form()
            if file.header != self._header(number) or part.n != len(self.shards[number]):
                raise ValueError("it belongs to another capture")
        return part


def _name(layer: int, kind: str) -> str:
    return f"layers.{layer}.{kind}"


def is_store(folder: str | os.PathLike[str]) -> bool:
    """Whether a capture was begun in a folder."""
    try:
        return (check_name(folder) / _INDEX).exists()
    except (OSError, ValueError):
        return False


def check_store(folder: str | os.PathLike[str], *, known: Sequence[str] = ()) -> None:
    """Refuse a folder that cannot become a store, and is none; it may have `known` folders in it.

    Raises:
        FileError: it is a file, or holds something else.
    """
    path = check_name(folder)
    try:
        if path.exists() and not path.is_dir():
            raise FileError(f"{folder} is a file: expected a folder to keep a capture in")
        there = path.iterdir() if path.is_dir() and not (path / _INDEX).exists() else ()
        # A temporary of a write that was killed is no content.
        if any(one.name[0] != "." and one.name not in known for one in there):
            raise FileError(f"{folder} holds something else than a capture: expected an empty folder, or none")
    except (OSError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"cannot keep a capture in {folder}: {why(error)}") from error


def begin_store(
    folder: str | os.PathLike[str],
    layers: Sequence[int],
    site: str,
    provenance: Mapping[str, Any],
    batches: Sequence[Sequence[int]],
    layout: tuple[int, int, int],
) -> Store:
    """A store to write shards to: a new one, or the one that is there, if it is of the same capture.

    Args:
        folder: made if it is not there.
        layers, site, provenance: what is captured, and how.
        batches: demonstrations in the batches in which they are read; a shard holds whole ones.
        layout: (layers, units, d) of the activations.

    Raises:
        MismatchError: the folder holds another capture; says what differs.
        FileError: it holds something else, or cannot be written to.
    """
    path = check_name(folder)
    facts = {"layers": list(layers), "site": site, "provenance": plain(provenance), "batches": plain(batches)}
    check_store(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / _INDEX).exists():
            facts["shards"] = _shards(batches, shard_size(layout))
            digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
            write_sealed_json(path / _INDEX, {"sea_lens": KIND, "id": digest, **facts})
    except (OSError, ValueError) as error:
        raise FileError(f"cannot keep a capture in {folder}: {why(error)}") from error
    store = open_store(path)
    ours, theirs = (
        {name: fact for name, fact in one.items() if name in ("layers", "site")} | comparable(one["provenance"])
        for one in (facts, store.content)
    )
    refuse_other_run(ours, theirs, f"{folder} holds another capture")
    if facts["batches"] != store.content["batches"]:
        raise MismatchError(f"{folder} was captured in other batches: expected the batch size that it was begun with")
    return store


def shard_size(layout: tuple[int, int, int]) -> int:
    """About how many demonstrations a shard has, given (layers, units, d)."""
    return max(FEWEST, SHARD_NUMBERS // (3 * math.prod(layout)))


def _shards(batches: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Numbers of the batches of each shard, so that it has about so many demonstrations."""
    shards: list[list[int]] = []
    filled = size
    for number, batch in enumerate(batches):
        if filled >= size:
            shards.append([])
            filled = 0
        shards[-1].append(number)
        filled += len(batch)
    return shards


def open_store(folder: str | os.PathLike[str]) -> Store:
    """The store that is in a folder.

    Raises:
        FileError: there is none, or what it says of itself is damaged.
    """
    path = check_name(folder)
    if not is_store(path) and (inner := sorted(index.parent.name for index in path.glob(f"*/{_INDEX}"))):
        raise FileError(f"{folder} holds captures of several sites: expected a folder in it, of {', '.join(inner)}")
    content = read_sealed_json(path / _INDEX, KIND)
    with as_file_errors(path / _INDEX):
        store = Store(path, content)
        indices = [index for shard in store.shards for index in shard]
        if sorted(indices) != list(range(len(indices))) or not indices or not store.layers or not store.site:
            raise ValueError("its shards are not those of all demonstrations")
        numbers = [number for shard in store.batches for number in shard]
        if numbers != list(range(len(content["batches"]))) or not all(store.batches):
            raise ValueError("its shards are not those of all batches, one after the other")
        _ = store.provenance, content["id"]
    return store
