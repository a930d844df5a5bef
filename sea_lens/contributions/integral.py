"""The integrated gradient along an edit's common strength, by Gauss-Legendre quadrature (SEA.md section 7).

    cₗ = ∫₀¹ sₗ ∂f/∂αₗ (t·s) dt        ∂f/∂αₗ = ⟨∂f/∂oₗ, editedₗ − xₗ⟩

with oₗ the activation behind layer l's edit, xₗ the one before it, and s the strengths asked for (Sundararajan et al.
2017 for the integral). One forward and one backward pass per node give ∂f/∂oₗ of every layer at once, and from the
inner product whatever shares of it are wanted: by layer, head, position or singular direction.

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
from ..edits.activation import ActivationEdit
from ..measure.scorer import Scorer, ScoringBatch
from ..models.lens import HookFunction

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")

FIRST_NODES = 4
MAX_NODES = 64


@dataclass(frozen=True)
class Slope:
    """What ∂f/∂α of one layer is made of, on one batch.

    Attributes:
        layer: which.
        x: activations before the edit.
        gradient: sₗ ∂f/∂oₗ, in the same places; f is the batch's sum of contrasts.
        batch: the sequences.
    """

    layer: int
    x: Float[Tensor, "batch pos units d"]
    gradient: Float[Tensor, "batch pos units d"]
    batch: ScoringBatch


Shares: TypeAlias = Callable[[Slope], Float[Tensor, "batch *parts"]]
"""Splits ⟨gradient, edited − x⟩ of every sequence into parts that add up to it."""


@dataclass(frozen=True)
class Path:
    """An edit, scaled from nothing to full strength."""

    model: Any
    edit: ActivationEdit
    scorer: Scorer
    layers: tuple[int, ...]
    strength: Mapping[int, float | Tensor]
    combine: str | None

    def integrate(
        self, shares: Shares, effects: Float[Tensor, " contrasts"], tolerance: float | None
    ) -> tuple[list[Float[Tensor, "contrasts *parts"]], dict[str, Any]]:
        """Shares of each layer in each contrast's effect, and what the quadrature says of itself.

        The nodes double until the sum of all shares is within `tolerance` of the mean effect, relatively.

        Warns:
            UserWarning: it is not with the most nodes; names the error.
        """
        if tolerance is None:
            tolerance = 1e-3 if self.scorer.lens.dtype.itemsize >= 4 else 0.1
        tolerance = as_number(tolerance, "tolerance")
        delta, nodes = effects.mean().item(), FIRST_NODES
        while True:
            positions, weights = np.polynomial.legendre.leggauss(nodes)
            sums: list[Tensor] = []
            for position, weight in zip(positions.tolist(), weights.tolist(), strict=True):
                at_node = self.node((position + 1) / 2, shares)
                scaled = [weight / 2 * values for values in at_node]
                sums = [a + b for a, b in zip(sums, scaled, strict=True)] if sums else scaled
            error = abs(sum((values.sum() / len(values)).item() for values in sums) - delta)
            if error <= tolerance * abs(delta) or nodes >= MAX_NODES:
                break
            nodes *= 2
        if error > tolerance * abs(delta):
            warnings.warn(
                f"path contributions close to {error:.2e} nats with {nodes} nodes, not to the "
                f"{tolerance * abs(delta):.2e} asked for ({tolerance:g} of the effect {delta:+.2e})",
                stacklevel=4,
            )
        return sums, {"nodes": nodes, "tolerance": tolerance}

    def node(self, t: float, shares: Shares) -> list[Float[Tensor, "contrasts *parts"]]:
        """Shares of each layer in df/dt at strengths t·s, for each contrast."""
        items: list[Tensor] = []
        for batch in self.scorer.batches:
            for place, slope in enumerate(self._slopes(t, batch)):
                values = shares(slope).double().cpu()
                if place == len(items):
                    items.append(torch.zeros(self.scorer.n // 2, *values.shape[1:], dtype=torch.float64))
                items[place].index_add_(0, batch.items, values)
        return items

    def _slopes(self, t: float, batch: ScoringBatch) -> list[Slope]:
        """Activations and gradients of every layer; rows of a batch do not touch, so one backward serves them all."""
        lens, site = self.scorer.lens, self.edit.at
        befores: dict[int, Tensor] = {}
        afters: dict[int, Tensor] = {}

        def hook(layer: int) -> HookFunction:
            def edit(x: Tensor) -> Tensor:
                befores[layer] = x.detach()
                out = self.edit(x, layer, t * self.strength[layer], self.combine)
                afters[layer] = out if out.requires_grad else out.requires_grad_()
                # What stands before the first edit needs no gradient, so recording begins only here.
                torch.set_grad_enabled(True)
                return afters[layer]

            return edit

        hooks = [(site.point(lens, layer), hook(layer)) for layer in self.layers]
        with torch.no_grad(), lens.hooks(hooks):
            contrast = signed(batch, self.scorer.batch_log_probs(batch)).sum()
            gradients = gradients_of(contrast, [afters[layer] for layer in self.layers])
        return [
            Slope(
                layer,
                site.to_units(_at_least_float32(befores[layer])),
                self._scaled(site.to_units(_at_least_float32(gradient)), layer),
                batch,
            )
            for layer, gradient in zip(self.layers, gradients, strict=True)
        ]

    def _scaled(self, gradient: Float[Tensor, "batch pos units d"], layer: int) -> Float[Tensor, "batch pos units d"]:
        strength = self.edit.per_unit(self.strength[layer])
        return gradient * (
            rearrange(strength.to(gradient), "... -> ... 1") if isinstance(strength, Tensor) else strength
        )


def outside_inference_mode(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """A function that takes gradients, callable also where the user's script has switched them off for good."""

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


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def displaced(edit: ActivationEdit, slope: Slope, combine: str | None) -> Float[Tensor, "batch pos units d"]:
    """⟨gradient, edited − x⟩ before it is summed."""
    edited = edit.edit_units(slope.x, slope.layer, 1.0, combine or edit.combines[0])
    return slope.gradient * (edited - slope.x)
