"""Edits that are kept in files: one layout, one way to read it, and one set of checks for every method.

A method says what its tensors are, what its header holds beside them, and what must be true of both.
"""

import hashlib
import json
import math
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from .._support.storage import ImpossibleError, as_file_errors, bytes_of, read_tensors, write_tensors
from ..errors import InputError, MismatchError
from ..models.embedding_numbers import are_of_one, shown
from ..models.language_model import EMBEDDING, LanguageModel
from ..models.sites import SITES, Site
from .base import Edit
from .hub import pull, push
from .where import Defaults

# What provenance calls the processing of the model's weights, and the word for an edit that is for any of them.
_PROCESSING, _ANY = "processing", "any"

Saved = TypeVar("Saved", bound="SavedEdit")


class SavedEdit(Edit):
    """An edit with `save` and `load`.

    Its content is checked where it is made, by whatever it is made.

    Attributes:
        kind: what its files are called.
        provenance: the model, how the edit was made, and versions; JSON values.

    Raises:
        InputError: content that the method never gives.
    """

    kind: ClassVar[str]
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        try:
            self._check_whole()
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise ImpossibleError(f"this is no {self.kind}: {error}") from error

    def _check_whole(self) -> None:
        require(isinstance(self.provenance, Mapping), "the provenance is no object")
        require(isinstance(self.provenance.get("model", {}), Mapping), "the model of its provenance is no object")
        recorded = self.provenance.get("model", {}).get(_PROCESSING)
        named = isinstance(recorded, (list, tuple)) and all(isinstance(one, str) for one in recorded)
        require(named or recorded in (None, _ANY), f"its model has processing {recorded!r}"[:200])
        numbers = self.provenance.get("model", {}).get(EMBEDDING)
        plain = isinstance(numbers, (list, tuple)) and all(type(one) in (int, float) for one in numbers)
        require(numbers is None or (plain and len(numbers) > 0), f"its model has embedding {numbers!r}"[:200])
        layers, known = self.layers, self.n_layers
        require(len(layers) > 0, "it has no layers")
        require(all(type(layer) is int for layer in layers), f"it has layers {list(layers)}")
        require(known is None or type(known) is int, f"its model has {known!r} layers")
        beyond = [layer for layer in layers if layer < 0 or (known is not None and layer >= known)]
        require(not beyond, f"it has layers {beyond} of a model of {known}")
        for name, tensor in self.tensors().items():
            require(bool(torch.isfinite(tensor).all()), f"{name} holds NaN or infinite values")
        self.check_content()

    @property
    def n_layers(self) -> int | None:
        """Number of layers of the model that the provenance speaks of, None where it speaks of none."""
        return self.provenance.get("model", {}).get("n_layers")

    @property
    def digest(self) -> str:
        """SHA-256 of the method, its tensors and its facts: what the edit is, whatever file or process it is in."""
        found = hashlib.sha256(json.dumps([self.kind, self.facts()], sort_keys=True).encode())
        for name, tensor in sorted(self.tensors().items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(bytes_of(tensor))
        return found.hexdigest()

    def check_fit(self, lens: LanguageModel) -> None:
        """Refuse a model that the edit does not fit, as `Edit.check_fit`, or whose weights are processed otherwise.

        Folding and centring leave a model's predictions alone, and move its activations. An edit that records what had
        been done to the weights of its model is refused in a model of which that is not true; one without the record,
        which files of version 0.1 lack, in none.

        Raises:
            MismatchError: saying what each of them is.
        """
        super().check_fit(lens)
        model = self.provenance.get("model", {})
        recorded = model.get(_PROCESSING)
        if not are_of_one(known := model.get(EMBEDDING), embedding := lens.embedding):
            raise MismatchError(
                f"the edit was fitted on {model.get('name', 'another model')!r} with the embedding {shown(known)} and "
                f"{lens.name!r} has the same sizes and other weights, the embedding {shown(embedding)}: expected that "
                f"model (edit.for_any_model() gives an edit that is not asked)"
            )
        if recorded in (None, _ANY) or recorded == (here := lens.processing):
            return
        fitted, given = (", ".join(one) or "weights as trained" for one in (recorded, here))
        raise MismatchError(
            f"the edit was fitted on a model with {fitted}, {lens.name!r} has {given}: its activations are others "
            f"(edit.for_any_processing() gives an edit that is not asked)"
        )

    def for_any_processing(self: Saved) -> Saved:
        """The same edit, for models whose weights are processed in any way; what `save` writes of it says so."""
        return self._about_model(**{_PROCESSING: _ANY})

    def for_any_model(self: Saved) -> Saved:
        """The same edit, for models of the same sizes whatever their weights are; what `save` writes of it says so."""
        return self._about_model(**{EMBEDDING: None})

    def _about_model(self: Saved, **facts: Any) -> Saved:
        model = {**self.provenance.get("model", {}), **facts}
        # A copy, since every method is a dataclass of its own fields.
        return replace(self, provenance={**self.provenance, "model": model})  # type: ignore[type-var]

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What the edit consists of, by name."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the header says beside the provenance; JSON values."""

    @classmethod
    @abstractmethod
    def from_tensors(cls: type[Saved], tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Saved:
        """The edit that has these tensors and this header, as `tensors`, `facts` and the provenance gave them.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, IndexError: the file is damaged.
        """

    @abstractmethod
    def check_content(self) -> None:
        """Refuse content that this method never writes.

        Raises:
            ValueError: saying what is wrong with it.
        """

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the edit as safetensors, with provenance inside.

        Raises:
            FileError: the file cannot be written; a half-written one is never left.
            InputError: the positions that the edit remembers are a function, which no file can hold.
        """
        remembered = self.defaults.record
        header = {
            **self.facts(),
            **({"defaults": remembered} if remembered else {}),
            "provenance": dict(self.provenance),
        }
        write_tensors(path, self.tensors(), kind=self.kind, header=header)

    @classmethod
    def load(cls: type[Saved], path: str | os.PathLike[str]) -> Saved:
        """Read what `save` wrote.

        Raises:
            FileError: missing, truncated, foreign or damaged.
        """
        return read_edit(path, cls.kind, cls.from_tensors)

    def push_to_hub(self, repo_id: str, *, results: Mapping[str, Any] | None = None, **options: Any) -> str:
        """Upload the edit to the Hugging Face hub, with a card that says what it is (docs/method.md 12.5).

        Args:
            repo_id: "user/name"; made if it is not there.
            results: by name, what was measured (`sl.effect`, `sl.compare`, …, or texts), which the card tells.
            options: of huggingface_hub's `push_to_hub`: private, token, branch, create_pr, commit_message, ….

        Returns:
            The address of the commit.

        Raises:
            FileError: the hub cannot be reached, or refuses; says why.
            InputError: as `save`.
        """
        return push(self, repo_id, results, options)

    @classmethod
    def from_pretrained(cls: type[Saved], name: str | os.PathLike[str], **options: Any) -> Saved:
        """The edit of a repository on the hub, or of a folder with its file.

        Args:
            name: "user/name", or a folder.
            options: of huggingface_hub's `hf_hub_download`: revision, token, cache_dir, local_files_only, ….

        Raises:
            FileError: the hub cannot be reached or has no such edit, or as `load`.
        """
        return pull(os.fspath(name), cls.load, options)


def read_edit(
    path: str | os.PathLike[str], kind: str, made_of: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Saved]
) -> Saved:
    """The checked edit that is made of a file's tensors and header; errors as in `SavedEdit.load`."""
    tensors, header = read_tensors(path, kind=kind)
    with as_file_errors(path):
        edit = made_of(tensors, header)
        # An earlier version may have written fewer, as `from_tensors` knows.
        require(set(edit.tensors()) >= set(tensors), "it holds other tensors than its method writes")
        return _remembering(edit, header.get("defaults", {}))


def _remembering(edit: Saved, record: Mapping[str, Any]) -> Saved:
    """The edit with the defaults that a file records.

    Raises:
        ValueError, TypeError: they are not defaults of this edit.
    """
    require(isinstance(record, Mapping), "its defaults are no object")
    try:
        return edit.with_defaults(**vars(Defaults.recorded(record))) if record else edit
    except InputError as error:
        raise ValueError(f"its defaults: {error}") from None


def require(holds: bool, broken: str) -> None:
    """Raise a ValueError with this message where something does not hold."""
    if not holds:
        raise ValueError(broken)


def check_units(site: str, shapes: Mapping[Any, tuple[int, ...]], provenance: Mapping[str, Any] | None = None) -> None:
    """Refuse tensors of an activation edit that are not all of one shape (units, width) that the site can have.

    Raises:
        ValueError: naming the site and the shapes, and those of the model that the provenance speaks of.
    """
    require(site in SITES, f"unknown site {site!r}")
    require(
        len(set(shapes.values())) == 1 and all(len(shape) == 2 and min(shape) > 0 for shape in shapes.values()),
        f"its layers have shapes {sorted(set(shapes.values()))}",
    )
    units, width = next(iter(shapes.values()))
    per_head = Site.of(site).per_head
    require(per_head or units == 1, f"site {site!r} has one unit a layer, not {units}")
    model = (provenance or {}).get("model", {})
    known = (model.get("n_heads"), model.get("d_head")) if per_head else (1, model.get("d_model"))
    fits = all(size in (None, found) for size, found in zip(known, (units, width), strict=True))
    require(fits, f"its layers have shape {(units, width)}, site {site!r} of its model has {known}")


def grouped_by_layer(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Tensors called "layers.L.name", by layer (ascending) and by name."""
    grouped: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        _, layer, name = key.split(".")
        grouped.setdefault(int(layer), {})[name] = tensor
    return dict(sorted(grouped.items()))


def check_signatures(signatures: Mapping[int, float] | None, layers: tuple[int, ...]) -> None:
    """Refuse signatures that are not one number, at least 0, for each layer; None is allowed.

    Raises:
        ValueError: they are not.
    """
    if signatures is not None:
        require(set(layers) <= set(signatures), f"it has signatures of layers {sorted(signatures)} alone")
        sizes = all(type(s) in (int, float) and s >= 0 and math.isfinite(s) for s in signatures.values())
        require(sizes, "a signature is no size")
        require(all(type(layer) is int and layer >= 0 for layer in signatures), "a signature is of no layer")


def keyed_by_layer(values: Mapping[str, float] | None) -> dict[int, float] | None:
    """Numbers by layer, from a header in which JSON has made the layers text; None stays None."""
    return None if values is None else {int(layer): value for layer, value in values.items()}
