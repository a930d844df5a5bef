"""Which layers carry an edit's effect (SEA.md section 7, Layers).

Let f(α₁ … α_L) be the mean contrast with strength αₗ on layer l's edit and Δ = f(s) − f(0) for the strengths s asked
for. Four answers, each a different question:

- `only_one`: f(sₗ alone) − f(0), what the layer does by itself;
- `leave_one_out`: f(s) − f(s without layer l), what is lost without it;
- `shapley`: the average over all orders of adding the layers of what each adds (Shapley 1953; Castro et al. 2009 for
  sampling); sums to Δ exactly;
- `path`: cₗ = ∫₀¹ sₗ ∂f/∂αₗ (t·s) dt, the integrated gradient (Sundararajan et al. 2017) along the common strength, by
  Gauss-Legendre quadrature; one forward and one backward pass per node give every layer; sums to Δ up to quadrature.
"""

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..demonstrations import Contrast
from ..errors import InputError
from ..intervention import ActivationEdit, Scalar, Strength
from ..layers import LayerChoice
from ..progress import tracked
from ..scoring import Scorer, contrast_scorer, contrast_values
from .results import LayerContributions

METHODS = ("path", "shapley", "leave_one_out", "only_one")
MAX_EXACT_LAYERS = 10
MAX_NODES = 64


def layer_contributions(
    model: Any,
    edit: ActivationEdit,
    contrasts: Iterable[Contrast],
    method: str = "path",
    layers: LayerChoice = "all",
    strength: Strength = 1.0,
    combine: str | None = None,
    *,
    batch_size: int = 16,
    prepend_bos: bool = True,
    tolerance: float = 1e-3,
    permutations: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> LayerContributions:
    """Contribution of each edited layer to the effect on contrasts.

    Args:
        model: a TransformerLens model.
        edit: the edit.
        contrasts: what the effect is measured on.
        method: see the module's documentation.
        layers, strength, combine: as in `applied`.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        tolerance: `path` doubles its nodes from 4 until |Σ − Δ| ≤ tolerance · |Δ|, at most to 64.
        permutations: for `shapley` with more than 10 layers: orders drawn, each together with its reverse.
        seed: of those orders.
        progress: show a progress bar.

    Returns:
        Values in nats, with each contrast's share.

    Raises:
        InputError: an unknown method.
        Otherwise as `effect`.

    Warns:
        UserWarning: `path` did not close to the tolerance; names the error.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    edit.functions(model, layers=layers, strength=strength, combine=combine)
    scorer = contrast_scorer(model, contrasts, batch_size=batch_size, prepend_bos=prepend_bos)
    game = _Game(model, edit, scorer, edit.choose_layers(layers), strength, combine)
    unedited, edited = game.value(()), game.value(game.layers)
    delta = edited - unedited
    details: dict[str, Any] = {}
    if method == "only_one":
        items = torch.stack([game.value((layer,)) - unedited for layer in game.layers], 1)
    elif method == "leave_one_out":
        rest = [tuple(other for other in game.layers if other != layer) for layer in game.layers]
        items = torch.stack([edited - game.value(others) for others in rest], 1)
    elif method == "shapley":
        items, details = _shapley(game, permutations, seed, progress)
    else:
        items, details = _path(game, delta, tolerance)
    return LayerContributions(method, game.layers, delta.mean().item(), items, delta, details)


class _Game:
    """The contrast of each item as a function of which layers are edited, each coalition evaluated once."""

    def __init__(
        self,
        model: Any,
        edit: ActivationEdit,
        scorer: Scorer,
        layers: tuple[int, ...],
        strength: Strength,
        combine: str | None,
    ) -> None:
        self.model, self.edit, self.scorer, self.layers, self.combine = model, edit, scorer, layers, combine
        mapped = strength if isinstance(strength, Mapping) else dict.fromkeys(layers, strength)
        self.strength: dict[int, Scalar] = {layer: mapped[layer] for layer in layers}
        self._values: dict[tuple[int, ...], Float[Tensor, " contrasts"]] = {}

    def value(self, coalition: tuple[int, ...]) -> Float[Tensor, " contrasts"]:
        """Contrast of each item with only these layers edited; they are given ascending."""
        if coalition not in self._values:
            if not coalition:
                self._values[coalition] = contrast_values(self.scorer)
            else:
                strengths = {layer: self.strength[layer] for layer in coalition}
                with self.edit.applied(self.model, coalition, strengths, self.combine):
                    self._values[coalition] = contrast_values(self.scorer)
        return self._values[coalition]


def _shapley(
    game: _Game, permutations: int, seed: int, progress: bool
) -> tuple[Float[Tensor, "contrasts layers"], dict[str, Any]]:
    n = len(game.layers)
    if n <= MAX_EXACT_LAYERS:
        items = torch.zeros(len(game.value(())), n, dtype=torch.float64)
        sizes = list(range(n))
        subsets = [subset for size in sizes for subset in itertools.combinations(sizes, size)]
        for subset in tracked(subsets, "Shapley values", len(subsets), show=progress):
            weight = math.factorial(len(subset)) * math.factorial(n - len(subset) - 1) / math.factorial(n)
            for player in set(sizes) - set(subset):
                joined = _coalition(game, {*subset, player})
                items[:, player] += weight * (game.value(joined) - game.value(_coalition(game, set(subset))))
        return items, {"evaluations": 2**n, "exact": True}
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in tracked(range(permutations), "Shapley values", permutations, show=progress):
        order = torch.randperm(n, generator=generator).tolist()
        # An order and its reverse are averaged into one sample: their errors tend to cancel.
        samples.append(sum(_marginals(game, one) for one in (order, order[::-1])) / 2)
    stacked = torch.stack(samples)
    error = stacked.mean(1).std(0) / math.sqrt(permutations) if permutations > 1 else torch.full((n,), math.nan)
    return stacked.mean(0), {"exact": False, "permutations": 2 * permutations, "standard_errors": error.tolist()}


def _coalition(game: _Game, players: set[int]) -> tuple[int, ...]:
    return tuple(game.layers[player] for player in sorted(players))


def _marginals(game: _Game, order: list[int]) -> Float[Tensor, "contrasts layers"]:
    items = torch.zeros(len(game.value(())), len(order), dtype=torch.float64)
    before = game.value(())
    for place, player in enumerate(order):
        after = game.value(_coalition(game, set(order[: place + 1])))
        items[:, player] = after - before
        before = after
    return items


def _path(
    game: _Game, delta: Float[Tensor, " contrasts"], tolerance: float
) -> tuple[Float[Tensor, "contrasts layers"], dict[str, Any]]:
    nodes = 4
    while True:
        positions, weights = np.polynomial.legendre.leggauss(nodes)
        items = sum(
            weight / 2 * _gradient(game, (position + 1) / 2)
            for position, weight in zip(positions.tolist(), weights.tolist(), strict=True)
        )
        assert isinstance(items, Tensor)
        error = abs((items.sum(1) - delta).mean().item())
        allowed = tolerance * abs(delta.mean().item())
        if error <= allowed or nodes >= MAX_NODES:
            break
        nodes *= 2
    if error > allowed:
        warnings.warn(
            f"path contributions close to {error:.2e} nats with {nodes} nodes, not to the {allowed:.2e} asked for "
            f"({tolerance:g} of the effect)",
            stacklevel=3,
        )
    return items, {"nodes": nodes, "tolerance": tolerance}


def _gradient(game: _Game, t: float) -> Float[Tensor, "contrasts layers"]:
    """sₗ ∂f/∂αₗ at strengths t·s, for each contrast.

    Every row of a batch has a strength of its own, so that one backward pass gives each contrast's gradient.
    """
    scorer = game.scorer
    items = torch.zeros(scorer.n // 2, len(game.layers), dtype=torch.float64)
    for batch in scorer.batches:
        rows = len(batch.tokens)
        variables = {
            layer: torch.full((rows, 1, 1), t, dtype=torch.float32, device=scorer.lens.device, requires_grad=True)
            for layer in game.layers
        }
        strengths = {layer: variables[layer] * game.strength[layer] for layer in game.layers}
        with torch.enable_grad(), game.edit.applied(game.model, game.layers, strengths, game.combine):
            log_probs = scorer.batch_log_probs(batch)
            # Even completions are targets, odd ones foils.
            signs = 1.0 - 2.0 * (batch.completion % 2).to(log_probs)
            gradients = torch.autograd.grad((signs * log_probs).sum(), list(variables.values()))
        stacked = rearrange(list(gradients), "layers rows 1 1 -> rows layers").double().cpu()
        items.index_add_(0, batch.items, stacked)
    return items
