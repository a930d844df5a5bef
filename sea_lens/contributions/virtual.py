"""Which heads write and read the directions of an edit, by weights alone (docs/method.md 8.7).

Composition of heads through the stream (Elhage et al. 2021), with a direction of an edit in the place of one of the two
heads: how much of what a head writes lies along it, and what a head's scores and values make of it.
"""

import functools
import math
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._support.arguments import as_integer, given
from .._support.progress import tracked
from .._support.significance import upper_p_values
from ..edits.base import Edit
from ..edits.where import LayerChoice
from ..errors import InputError, SeaLensWarning, UnsupportedModelError
from ..measure.effects import checked_controls, control_places
from ..models.head_weights import READ, WRITE, HeadWeights, head_weights, written_weight
from ..models.lens import Lens
from ..spectral.direction_terms import Label
from .direction_parts import DirectionParts, Part, spectral_edit
from .directions import check_control_ranks
from .edges import is_parallel
from .study import activation_edit
from .virtual_results import Entry, VirtualWeights

DIRECTIONS, DRAWS = 8, 199


def virtual_weights(
    model: Any,
    edit: Edit,
    layers: LayerChoice | None = None,
    combine: str | None = None,
    *,
    directions: int = DIRECTIONS,
    labels: Iterable[Label] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    control: Iterable[Edit] = (),
    progress: bool = False,
) -> VirtualWeights:
    """Which heads write and read an edit's net directions, by weights alone (docs/method.md 8.7).

    No text is run: what a head could write and would read is told, and not what it does on any. Norms count by their
    gains, positions not at all: a query stands where the key stands.

    Args:
        model: a TransformerLens model.
        edit: a spectral edit without a feature map.
        layers, combine: as in `applied`.
        directions: how many net directions of each layer, those of largest eigenvalue. Equal and close eigenvalues are
            one entry together (docs/method.md 8.5), whose strength is the root mean square over them.
        labels: which directions instead, by label as in `DirectionContributions`:
            `[label for label, _ in found.top(5)]`.
        draws: how many random directions each stands beside. They are isotropic, and weights and activations are not,
            so that directions of any fit stand out among them: the stronger comparison is that with `control`.
        seed: of the draws.
        control: spectral edits of the same ranks, such as `sl.permuted` gives, whose directions in the same places of
            the spectrum are measured beside these.
        progress: show a progress bar.

    Returns:
        Strengths and ratios by (direction, to_layer, head, way). Writers are heads whose output enters the stream in
        front of the edited point, readers those of the layers behind it; at `attn_out` heads of the edited layer alone
        are terms of what is edited, at `mlp_out` none is. At site `z` a direction is what its own head
        writes by it, and has readers alone.

    Raises:
        InputError: the edit is not a spectral one, or one through a feature map; labels that are none, or that it does
            not have; a control edit of another site, other ranks, through a feature map, or without a layer; or no
            head writes or reads at all.
        MismatchError: the edit, or a control, is for another model.
        UnsupportedModelError: nothing can be told of the model's heads; says why.
        Otherwise as `effect`.

    Warns:
        UserWarning: something is left out, since weights do not tell what heads do there (`left_out`).

    Example:
        >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
        >>> found = sl.virtual_weights(bed.model, edit, directions=2)
        >>> sorted(found.to_frame()["way"].unique())
        ['k', 'q', 'v', 'write']
    """
    edit = spectral_edit(activation_edit(model, edit, "virtual_weights"))
    if not edit.feature.is_identity:
        raise InputError(
            f"virtual_weights needs a linear edit: one through {edit.feature.name!r} has no net directions"
        )
    control = [spectral_edit(other) for other in checked_controls(control)]
    wanted = None if labels is None else _labels(labels)
    directions, draws = as_integer(directions, "directions", least=1), as_integer(draws, "draws", least=1)
    seed, where = as_integer(seed, "seed"), edit.check(model, layers, combine=combine)
    check_control_ranks(edit, where.layers, control)
    for other in control:
        other.check(model, **control_places(other, where, combine))
    lens = Lens.of(model)
    taken = [DirectionParts(one, where.combine, "net") for one in (edit, *control)]
    parts = _chosen(taken[0], where.layers, directions, wanted)
    ways = {at: [_ways(lens, edit.site, part.label[0], at) for part in parts] for at in range(lens.n_layers)}
    needed = [at for at, of_parts in ways.items() if any(of_parts)]
    if not needed:
        raise InputError(f"no head writes or reads directions of layers {list(where.layers)} at {edit.site!r}")
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(draws, lens.d_model, generator=generator, dtype=torch.float64)
    rows = [one for of_edit in taken for one in _rows(lens, of_edit, parts)]
    vectors = torch.cat([*rows, torch.nn.functional.normalize(random, dim=-1)])
    if not vectors.isfinite().all():
        raise UnsupportedModelError(f"model {lens.name!r}: what heads write by its weights is not finite")
    gathered = _Gathered(parts, [len(one) for one in rows], _drawn(parts, draws, generator))
    measured = head_weights(lens, needed, vectors)
    for at, weights in tracked(measured, "weights of heads", len(needed), show=progress):
        gathered.add(at, ways[at], weights)
    result = gathered.result()
    if not result.entries:
        raise UnsupportedModelError(f"model {lens.name!r}: {next(iter(result.left_out.values()), 'it has no heads')}")
    if result.left_out:
        (layer, way), why = next(iter(result.left_out.items()))
        warnings.warn(
            f"{len(result.left_out)} ways of layers are left out (left_out), such as {way!r} of layer {layer}: {why}",
            SeaLensWarning,
            stacklevel=2,
        )
    return result


def _labels(labels: Any) -> list[Label]:
    """Labels of directions, each once.

    Raises:
        InputError: they are no list of tuples, or none is given; says what was expected.
    """
    expected = "expected a list of labels, such as (0, '+', 0)"
    if not isinstance(labels, Iterable) or isinstance(labels, (str, bytes, Mapping)):
        raise InputError(f"labels {given(labels)}: {expected}")
    found = list(labels)
    if not found:
        raise InputError("labels: no label is given, and so no direction is asked for")
    for label in found:
        if not isinstance(label, (tuple, list)) or not all(isinstance(part, Hashable) for part in label):
            raise InputError(f"labels: {given(label)} is no label: {expected}")
    return list(dict.fromkeys(map(tuple, found)))


def _chosen(taken: DirectionParts, layers: Sequence[int], most: int, labels: Sequence[Label] | None) -> list[Part]:
    """The wanted directions, that of the largest eigenvalue first.

    Raises:
        InputError: a label that there is none of.
    """
    of_layers = [sorted(taken.parts(layer), key=_size) for layer in layers]
    if labels is None:
        return sorted((part for parts in of_layers for part in parts[:most]), key=_size)
    known = {part.label: part for parts in of_layers for part in parts}
    if unknown := [label for label in labels if label not in known]:
        raise InputError(f"{given(unknown[0])} is no net direction of the edit in layers {list(layers)}")
    return sorted((known[label] for label in labels), key=_size)


def _size(part: Part) -> float:
    assert part.eigenvalue is not None
    return -abs(part.eigenvalue)


def _ways(lens: Lens, site: str, edited: int, layer: int) -> tuple[str, ...]:
    """By which ways heads of a layer meet directions of an edited one."""
    if layer > edited:
        return READ
    # The MLP of a parallel block does not see what the attention beside it writes.
    beside = layer == edited and site == "mlp_out" and is_parallel(lens)
    return () if site == "z" or beside else (WRITE,)


def _rows(lens: Lens, taken: DirectionParts, parts: Sequence[Part]) -> list[Float[Tensor, "n d_model"]]:
    """Unit vectors in the stream that span each of the parts; of a control those in the same places."""
    found = []
    written = functools.cache(lambda layer: written_weight(lens, layer).cpu())
    for part in parts:
        layer = part.label[0]
        subspaces, _ = taken.factors(layer)
        factor = (subspaces.keep if part.kept else subspaces.drop)[part.unit, :, part.columns].double().cpu()
        rank = int((subspaces.keep_rank if part.kept else subspaces.drop_rank)[part.unit])
        rows = torch.nn.functional.normalize(factor[:, : max(rank - part.first, 0)].T, dim=-1)
        if taken.edit.at.per_head and len(rows):
            rows = rows @ written(layer)[part.unit]
            # Of several, their lengths beside each other stay.
            rows = rows / rows.norm().clamp_min(1e-300) * math.sqrt(len(rows))
        found.append(rows)
    return found


def _drawn(parts: Sequence[Part], draws: int, generator: torch.Generator) -> list[Int[Tensor, "draws n"]]:
    """Which of the random directions stand beside each part in each draw: n of them, with repetition, beside n."""
    single = torch.arange(draws)[:, None]
    return [single if one.n == 1 else torch.randint(draws, (draws, one.n), generator=generator) for one in parts]


class _Gathered:
    """Entries of one layer of heads after the other.

    Args:
        parts: the directions.
        lengths: how many vectors each has, of the edit and then of one control after the other.
        drawn: which random directions stand beside each.
    """

    def __init__(self, parts: Sequence[Part], lengths: Sequence[int], drawn: Sequence[Int[Tensor, "draws _"]]) -> None:
        self._parts, self._lengths, self._drawn = parts, lengths, drawn
        self._draws = len(drawn[0])
        self._entries: list[Entry] = []
        self._columns: dict[str, list[Float[np.ndarray, "... heads"]]] = {
            "strength": [],
            "ratio": [],
            "p": [],
            "control": [],
        }
        # Of all entries of a direction that write, and of those that read, the largest ratio in each draw.
        self._largest: dict[tuple[Label, bool], Float[np.ndarray, " draws"]] = {}
        self._left_out: dict[tuple[int, str], str] = {}

    def add(self, at: int, ways: Sequence[Sequence[str]], weights: HeadWeights) -> None:
        """What the heads of a layer do along each of the directions, by the ways that it has there."""
        used = {way for of_part in ways for way in of_part}
        self._left_out |= {(at, way): why for way, why in weights.left_out.items() if way in used}
        for place, (part, of_part) in enumerate(zip(self._parts, ways, strict=True)):
            for way in (way for way in of_part if way in weights.squares):
                self._add(at, place, part, way, weights.squares[way], weights.mean_squares[way])

    def _add(
        self,
        at: int,
        place: int,
        part: Part,
        way: str,
        squares: Float[Tensor, "vectors heads"],
        mean: Float[Tensor, " heads"],
    ) -> None:
        *vectors, pool = squares.split([*self._lengths, self._draws])
        # What stands in this place of the edit, and of each control: a control that has nothing there does nothing.
        own, *controls = (one.sum(0) / max(len(one), 1) for one in vectors[place :: len(self._parts)])
        null = pool[self._drawn[place]].mean(1)
        if part.n > 1:
            # Repetitions are of the draws that there are, whose mean is known better.
            null = null * _over(mean, pool.mean(0))
        ratio, beside = _over(own, mean).sqrt().numpy(), _over(null, mean).sqrt().numpy()
        self._entries += [(part.label, at, head, way) for head in range(len(mean))]
        self._columns["strength"].append(own.sqrt().numpy())
        self._columns["ratio"].append(ratio)
        self._columns["p"].append(upper_p_values(ratio, beside))
        if controls:
            self._columns["control"].append(_over(torch.stack(controls), mean).sqrt().numpy())
        kind = part.label, way == WRITE
        self._largest[kind] = np.maximum(self._largest.get(kind, 0.0), beside.max(1))

    def result(self) -> VirtualWeights:
        """All of them."""
        columns = {name: np.concatenate(found, -1) for name, found in self._columns.items() if found}
        ratio = columns.get("ratio", np.zeros(0))
        corrected = np.zeros_like(ratio)
        for (label, writes), largest in self._largest.items():
            own = [i for i, entry in enumerate(self._entries) if (entry[0], entry[3] == WRITE) == (label, writes)]
            corrected[own] = upper_p_values(ratio[own], np.broadcast_to(largest[:, None], (self._draws, len(own))))
        return VirtualWeights(
            tuple(self._entries),
            columns.get("strength", ratio),
            ratio,
            columns.get("p", ratio),
            corrected,
            self._draws,
            control_ratios=columns.get("control"),
            eigenvalues={part.label: part.eigenvalue for part in self._parts if part.eigenvalue is not None},
            dimensions={part.label: part.n for part in self._parts},
            left_out=self._left_out,
        )


def _over(one: Float[Tensor, "*draws heads"], other: Float[Tensor, " heads"]) -> Float[Tensor, "*draws heads"]:
    """A ratio; 0 where a head does nothing at all."""
    return torch.where(other > 0, one / other.clamp_min(1e-300), 0.0)
