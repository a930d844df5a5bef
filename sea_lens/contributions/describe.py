"""What a singular direction stands for: the tokens it raises and lowers, the texts it fires on (docs/method.md 8.4)."""

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from .._support.saturation import widened
from ..measure.scorer import ScoringBatch
from ..models.lens import HookFunction, Lens
from ..models.predictions import predict
from ..models.readout import LogitReadout, head_outputs, probe_norm
from ..models.token_positions import acting, telling
from ..models.tokens import Batch, batches
from ..spectral.capturing import Captured
from ..spectral.direction_terms import Direction, DirectionTerms, direction_terms
from ..spectral.edit import SpectralEdit
from .results import DirectionDescription
from .study import Study

TOKENS = 8
EXAMPLES = 5
BATCH_SIZE = 16


def describe_directions(
    study: Study, labels: Sequence[tuple[Any, ...]], captured: Captured | None = None
) -> list[DirectionDescription]:
    """Describe directions of U⁺ and U⁻ of a study's spectral edit.

    The sign of a singular vector is arbitrary, so a direction is described by what the edit does along it: the mean
    displacement over the tokens of the contrasts' prompts, in the edited run; of an edit that does not act at all
    positions, over the tokens of prompts and completions where it acts.

    Args:
        study: the edit, and the contrasts whose prompts it is watched on.
        labels: as in `DirectionContributions`, of sides "+" and "-".
        captured: readings of demonstrations, to find those that a direction fires on.
    """
    edit = study.edit
    assert isinstance(edit, SpectralEdit)
    directions = [Direction.of(label) for label in labels]
    neutral = {} if captured is None else {d.layer: captured.neutral(d.layer) for d in directions}
    moved = _mean_displacements(study, edit, directions)
    return [
        DirectionDescription(
            displacement,
            *_tokens(study.lens, edit, direction, vector),
            _examples(edit, direction, neutral[direction.layer]) if neutral else [],
        )
        for direction, (displacement, vector) in zip(directions, moved, strict=True)
    ]


def _mean_displacements(
    study: Study, edit: SpectralEdit, directions: Sequence[Direction]
) -> list[tuple[float, Float[Tensor, " d"]]]:
    """Mean of what the edit adds along each direction over the tokens of `describe_directions`: length and vector."""
    lens, where = study.lens, study.where
    functions = edit.functions(study.model, where)
    wanted = {edit.at.point(lens, direction.layer): direction.layer for direction in directions}
    sums: list[tuple[float, Any]] = [(0.0, 0.0)] * len(directions)
    count = 0
    for batch, prompts in _watched(study):
        # BOS is the same in every text, and often far larger than the rest.
        counted = batch.mask.bool()
        counted[:, 0] &= batch.mask.sum(1) == 1
        seen, mask = _before_edits(study, batch, prompts, functions, wanted)
        counted &= mask
        count += int(counted.sum())
        for name, x in seen.items():
            layer = wanted[name]
            activations = edit.at.to_units(widened(x))[counted]
            subspaces = edit.subspaces[layer].to(activations.device, activations.dtype)
            terms = direction_terms(activations, subspaces, edit.feature, where.combine)
            alpha = edit.per_unit(where.strengths[layer])
            # A description has one strength for each unit, so strengths of different tokens are averaged.
            alphas = reduce(torch.atleast_1d(torch.as_tensor(alpha)).to(activations), "... units -> units", "mean")
            alphas = alphas.expand(len(subspaces.keep))
            for place, direction in enumerate(directions):
                if direction.layer == layer:
                    length, vector = _term(terms, direction, alphas)
                    total = reduce(vector, "tokens d -> d", "sum")
                    sums[place] = (sums[place][0] + length.sum().item(), sums[place][1] + total)
    return [(length / max(count, 1), vector / max(count, 1)) for length, vector in sums]


def _watched(study: Study) -> Iterator[tuple[Batch | ScoringBatch, list[int]]]:
    """Batches of texts that the edit is watched on, and how long the prompts in them are."""
    if study.where.positions == "all":
        for batch in batches(study.contrasts.prompts, BATCH_SIZE):
            yield batch, batch.mask.sum(1).tolist()
    else:
        for scored in study.scorer.batches:
            yield scored, scored.prompts.tolist()


def _before_edits(
    study: Study,
    batch: Batch | ScoringBatch,
    prompts: Sequence[int],
    functions: Iterable[tuple[str, HookFunction]],
    wanted: Container[str],
) -> tuple[dict[str, Tensor], Bool[Tensor, "batch pos"]]:
    """Activations of an edited run as they stand before the edits, by hook point, and where the edit acts."""
    lens, positions = study.lens, study.where.positions
    seen: dict[str, Tensor] = {}
    acts = torch.ones_like(batch.mask, dtype=torch.bool)

    def watching(name: str, function: HookFunction) -> HookFunction:
        def hook(x: Tensor) -> Tensor | None:
            nonlocal acts
            if name in wanted:
                seen[name] = x
                acts = acts if positions == "all" else acting(lens, positions, x).mask.cpu()
            return function(x)

        return hook

    hooks = [(name, watching(name, function)) for name, function in functions]
    with torch.no_grad(), lens.hooks(hooks), telling(lens, prompts):
        predict(lens, batch.tokens, batch.mask)
    return seen, acts


def _term(
    terms: DirectionTerms, direction: Direction, strengths: Float[Tensor, " units"]
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, "tokens d"]]:
    """What the edit adds along one direction: its coefficient, and the vector."""
    unit, index, kept = direction.unit, direction.index, direction.side == "+"
    factor = (terms.subspaces.keep if kept else terms.subspaces.drop)[unit, :, index]
    slope = (terms.keep_slope if kept else terms.drop_slope)[:, unit]
    coefficient = strengths[unit] * (terms.keep if kept else terms.drop)[:, unit, index]
    return coefficient, rearrange(coefficient, "tokens -> tokens 1") * slope * factor


def _tokens(
    lens: Lens, edit: SpectralEdit, direction: Direction, vector: Float[Tensor, " d"]
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Tokens that a step along the vector raises and lowers most."""
    layer = direction.layer
    written = vector.double().cpu()
    if edit.at.per_head:
        z = torch.zeros(1, lens.n_heads, lens.d_head, dtype=torch.float64, device=lens.device)
        z[0, direction.unit] = vector
        written = head_outputs(lens, layer, z)[0, direction.unit]
        if (path := lens.attention_norm(layer)) is not None:
            # Behind attention stands a norm; its scale, which all heads share, changes no order of tokens.
            written = probe_norm(lens, path).apply_linearly(written, torch.ones(1, device=lens.device))
    written = written.to(lens.device)
    logits = LogitReadout.of(lens).changes(written / written.norm().clamp_min(1e-300)).cpu()
    logits = logits - logits.mean()
    # Padding and its like, and rows that only make the vocabulary's size round, stand in no text and explain nothing.
    special = {*lens.tokenizer.all_special_ids}
    ids = torch.tensor([i for i in range(min(len(logits), len(lens.tokenizer))) if i not in special])
    sides = []
    for largest in (True, False):
        order = logits[ids].topk(min(TOKENS, len(ids)), largest=largest)
        pairs = zip(order.values.tolist(), ids[order.indices].tolist(), strict=True)
        sides.append([(lens.tokenizer.decode([i]), value) for value, i in pairs])
    return sides[0], sides[1]


def _examples(edit: SpectralEdit, direction: Direction, neutral: Float[Tensor, "n units d"]) -> list[tuple[int, float]]:
    """Demonstrations of largest |aⱼ|, or |bⱼ| for a column of U⁻, as (index, aⱼ)."""
    unit, subspaces = direction.unit, edit.subspaces[direction.layer]
    mapped = edit.feature.forward(neutral[:, unit].to(subspaces.keep))
    centred = mapped if subspaces.centre is None else mapped - subspaces.centre[unit]
    factor = (subspaces.keep if direction.side == "+" else subspaces.drop)[unit, :, direction.index]
    fired = einsum(centred, factor, "n d, d -> n")
    order = fired.abs().argsort(descending=True, stable=True)[:EXAMPLES]
    return [(i, fired[i].item()) for i in order.tolist()]
