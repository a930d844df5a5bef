"""The integrated gradient along an edit's common strength, by Gauss-Legendre quadrature (docs/method.md 7.4).

    cₗ = ∫₀¹ sₗ ∂f/∂αₗ (t·s) dt        ∂f/∂αₗ = ⟨∂f/∂oₗ, editedₗ − xₗ⟩

with oₗ the activation behind layer l's edit, xₗ the one before it, and s the strengths asked for (Sundararajan et al.
2017 for the integral). One forward and one backward pass per node give ∂f/∂oₗ of every layer at once, and from the
inner product whatever shares of it are wanted: by layer, head, position or singular direction, all of them together.

Quadrature converges fast where f is smooth in t. Feature maps are clamped and some forget signs, so that an edit
through them can make f jump: then the sum misses the effect by what is reported, with any number of nodes.

Memory: an activation, its edited form and its gradient for every edited layer, 3 · layers · batch · positions · width
numbers, beside what autograd keeps of the forward pass behind the first edited layer.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_number
from .._support.processes import shared
from .._support.saturation import widened
from ..edits.base import Edit
from ..measure.scorer import ScoringBatch
from ..models.check import refuse_inference_tensors
from ..models.lens import HookFunction
from ..models.token_positions import acting
from .base import Contributions
from .study import Study, with_control

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")

FIRST_NODES = 4
MAX_NODES = 64
# Nats that an effect counts for at least when an error is compared with it, so that none needs no more nodes than one.
FLOOR = 0.1
# How much further off single contrasts may be than their mean.
SINGLE = 10.0
WHAT = "an integrated gradient"


@dataclass(frozen=True)
class Slope:
    """What ∂f/∂α of one layer is made of, on one batch.

    Attributes:
        layer: which.
        x: activations before the edit.
        gradient: sₗ ∂f/∂oₗ, in the same places, and 0 where the edit does not act; f is the batch's sum of contrasts.
        batch: the sequences.
    """

    layer: int
    x: Float[Tensor, "batch pos units d"]
    gradient: Float[Tensor, "batch pos units d"]
    batch: ScoringBatch


Shares: TypeAlias = Callable[[Slope], Float[Tensor, "batch *parts"]]
"""Splits ⟨gradient, edited − x⟩ of every sequence into parts that add up to it."""


@dataclass(frozen=True)
class Split:
    """One way to share out the integral.

    Attributes:
        shares: of one layer, on one batch.
        result: from each layer's shares in each contrast's effect, and what the quadrature says of itself.
    """

    shares: Shares
    result: Callable[[list[Float[Tensor, "contrasts *parts"]], dict[str, Any]], Contributions]


Splitter: TypeAlias = Callable[[Study], Split]


def path_contributions(
    study: Study, splitters: Mapping[Splitter, Sequence[Edit]], tolerance: float | None
) -> list[Any]:
    """One integral shared out in several ways, each with its control edits: a result for each way.

    A control edit has one integral as well, for all ways that it stands beside.
    """
    study.activation_edit(WHAT)
    for control in splitters.values():
        study.check_control(control)
    results = integrate(study, [split(study) for split in splitters], tolerance)
    found: dict[tuple[int, Splitter], Contributions] = {}
    for other in {id(one): one for control in splitters.values() for one in control}.values():
        under = study.under(other)
        wanted = [split for split, control in splitters.items() if any(one is other for one in control)]
        of_ways = integrate(under, [split(under) for split in wanted], tolerance)
        found |= {(id(other), split): result for split, result in zip(wanted, of_ways, strict=True)}
    return [
        with_control(result, [found[id(other), split] for other in splitters[split]])
        for split, result in zip(splitters, results, strict=True)
    ]


def integrate(study: Study, splits: Sequence[Split], tolerance: float | None) -> list[Contributions]:
    """The result of each split.

    The nodes double until the sums of all shares are within `tolerance` of the effects, relatively: the mean of the
    mean effect, and ten times that in the root mean square over contrasts, where misses cannot cancel. `FLOOR`
    nats are added to each effect, so that an edit without one is done at once.

    Warns:
        UserWarning: they are not with the most nodes; names the errors.
    """
    if tolerance is None:
        tolerance = 1e-3 if study.lens.dtype.itemsize >= 4 else 0.1
    tolerance = as_number(tolerance, "tolerance", least=0.0)
    effects, nodes = study.effects, FIRST_NODES
    sizes = torch.stack([effects.mean().abs(), effects.square().mean().sqrt()])
    allowed = tolerance * torch.tensor([1.0, SINGLE]) * (sizes + FLOOR)
    while True:
        positions, weights = np.polynomial.legendre.leggauss(nodes)
        sums: list[list[Tensor]] = []
        for position, weight in zip(positions.tolist(), weights.tolist(), strict=True):
            at_node = node(study, (position + 1) / 2, [split.shares for split in splits])
            scaled = [[weight / 2 * values for values in of_split] for of_split in at_node]
            sums = [_added(*pair) for pair in zip(sums, scaled, strict=True)] if sums else scaled
        # What the ways share out is the same integral, so that the first tells how far off all of them are.
        misses = torch.stack([values.reshape(len(values), -1).sum(1) for values in sums[0]]).sum(0) - effects
        errors = torch.stack([misses.mean().abs(), misses.square().mean().sqrt()])
        # An error that is NaN would pass for a small one the other way round.
        closed = bool((errors <= allowed).all())
        if closed or nodes >= MAX_NODES:
            break
        nodes *= 2
    if not closed:
        warnings.warn(
            f"path contributions close to {errors[0]:.2e} nats with {nodes} nodes, {errors[1]:.2e} in the root mean "
            f"square over contrasts, not to the {allowed[0]:.2e} and {allowed[1]:.2e} asked for (tolerance "
            f"{tolerance:g}, effect {effects.mean():+.2e}, root mean square {sizes[1]:.2e})",
            stacklevel=5,
        )
    details = {
        "nodes": nodes,
        "tolerance": tolerance,
        "closure_rms": errors[1].item(),
        "closure_largest": misses.abs().max().item(),
    }
    return [split.result(of_split, dict(details)) for split, of_split in zip(splits, sums, strict=True)]


def _added(sums: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(sums, more, strict=True)]


def node(study: Study, t: float, shares: Sequence[Shares]) -> list[list[Float[Tensor, "contrasts *parts"]]]:
    """Shares of each layer in df/dt at strengths t·s, for each contrast, in each of several ways."""

    def of_batch(batch: ScoringBatch) -> list[list[Tensor]]:
        slopes = _slopes(study, t, batch)
        with torch.no_grad():
            return [[way(slope).double().cpu() for slope in slopes] for way in shares]

    batches = study.scorer.batches
    found = shared(batches, of_batch)
    items = [
        [torch.zeros(study.scorer.n // 2, *values.shape[1:], dtype=torch.float64) for values in of_way]
        for of_way in found[0]
    ]
    for batch, of_ways in zip(batches, found, strict=True):
        for totals, of_way in zip(items, of_ways, strict=True):
            for total, values in zip(totals, of_way, strict=True):
                total.index_add_(0, batch.items, values)
    return items


def _slopes(study: Study, t: float, batch: ScoringBatch) -> list[Slope]:
    """Activations and gradients of every layer; rows of a batch do not touch, so one backward serves them all."""
    edit, lens, strengths = study.activation_edit(WHAT), study.lens, study.where.strengths
    refuse_inference_tensors(lens)
    befores: dict[int, Tensor] = {}
    afters: dict[int, Tensor] = {}
    acts: dict[int, Tensor] = {}

    def watching(layer: int, function: HookFunction) -> HookFunction:
        def hook(x: Tensor) -> Tensor:
            befores[layer] = x.detach()
            if study.where.positions != "all":
                acts[layer] = acting(lens, study.where.positions, x).over(x)
            out = function(x)
            assert out is not None
            afters[layer] = out if out.requires_grad else out.requires_grad_()
            # What stands before the first edit needs no gradient, so recording begins only here.
            torch.set_grad_enabled(True)
            return afters[layer]

        return hook

    scaled = study.where.with_strengths({layer: t * strength for layer, strength in strengths.items()})
    functions = zip(strengths, edit.functions(study.model, scaled), strict=True)
    hooks = [(name, watching(layer, function)) for layer, (name, function) in functions]
    with torch.no_grad(), lens.hooks(hooks):
        contrast = signed(batch, study.scorer.batch_log_probs(batch)).sum()
        gradients = gradients_of(contrast, list(afters.values()))
    of_layer = dict(zip(afters, gradients, strict=True))
    of_layer = {layer: torch.where(acts[layer], x, 0) if layer in acts else x for layer, x in of_layer.items()}

    def at_strength(gradient: Tensor, layer: int) -> Tensor:
        strength = edit.per_unit(strengths[layer])
        return gradient * (
            rearrange(strength.to(gradient), "... -> ... 1") if isinstance(strength, Tensor) else strength
        )

    return [
        Slope(
            layer,
            edit.at.to_units(widened(befores[layer])),
            at_strength(edit.at.to_units(widened(of_layer[layer])), layer),
            batch,
        )
        for layer in strengths
    ]


def displaced(study: Study, slope: Slope) -> Float[Tensor, "batch pos units d"]:
    """The products of gradient and edited − x, whose sum is the inner product."""
    edited = study.activation_edit(WHAT).arithmetic(slope.layer, study.where.combine)(slope.x, 1.0)
    return slope.gradient * (edited - slope.x)


def outside_inference_mode(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """The function, which takes gradients, made callable inside `torch.inference_mode` too."""

    @functools.wraps(function)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
        # Tensors that are made in inference mode, indices too, can never be part of a backward pass.
        with torch.inference_mode(False):
            return function(*args, **kwargs)

    return wrapped


def gradients_of(value: Float[Tensor, ""], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a number; zeros where it does not depend on a tensor, as behind a hook that cuts it off."""
    if not value.requires_grad:
        return [torch.zeros_like(tensor) for tensor in tensors]
    found = torch.autograd.grad(value, tensors, allow_unused=True)
    return [torch.zeros_like(x) if slope is None else slope for slope, x in zip(found, tensors, strict=True)]


def signed(batch: ScoringBatch, log_probs: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Log-probabilities counted for targets and against foils: even completions are targets, odd ones foils."""
    return (1.0 - 2.0 * (batch.completion % 2)).to(log_probs) * log_probs
