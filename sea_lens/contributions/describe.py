"""What a direction stands for: the tokens it raises and lowers, the texts it fires on (docs/method.md 8.4)."""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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
from ..models.tokens import Batch, batches, bos_token
from ..spectral.capturing import Captured
from ..spectral.direction_terms import Direction, DirectionTerms, Label
from ..spectral.edit import SpectralEdit
from .direction_parts import DirectionParts, Part
from .results import DirectionDescription
from .study import Study

TOKENS = 8
EXAMPLES = 5
# Tokens of a batch that are looked at for the largest displacements, since many stand in one context.
LOOKED_AT = 64
BATCH_SIZE = 16


def describe_directions(
    study: Study, parts: DirectionParts, labels: Sequence[Label], captured: Captured | None = None
) -> list[DirectionDescription]:
    """Describe directions of a study's spectral edit.

    The sign of a singular vector is arbitrary, so a direction is described by what the edit does along it: the mean
    displacement over the tokens of the contrasts' prompts, in the edited run; of an edit that does not act at all
    positions, over the tokens of prompts and completions where it acts.

    Args:
        study: the edit, and the contrasts whose prompts it is watched on.
        parts: the basis that the labels are of.
        labels: as in `DirectionContributions`, of sides "+" and "-".
        captured: readings of demonstrations, to find those that a direction fires on.
    """
    layers = sorted({Direction.of(label).layer for label in labels})
    of_label = {part.label: part for layer in layers for part in parts.parts(layer)}
    wanted = [(Direction.of(label).layer, of_label[label]) for label in labels]
    return [
        DirectionDescription(
            watched.displacement,
            *_tokens(study.lens, parts.edit, layer, part, watched.vector),
            *_examples(parts, layer, part, captured),
            [(_marked(study.lens, tokens, place), length) for length, tokens, place in watched.largest],
        )
        for (layer, part), watched in zip(wanted, _watch(study, parts, wanted), strict=True)
    ]


@dataclass
class _Watched:
    """What the edit adds along one direction, over the tokens of `describe_directions`.

    Attributes:
        displacement: mean of its signed length; of a plane the length of the mean.
        vector: mean of what is added.
        largest: signed length, the row's tokens and the token's place, where its size is largest.
    """

    displacement: float = 0.0
    vector: Any = 0.0
    largest: list[tuple[float, list[int], int]] = field(default_factory=list)

    def note(self, length: float, tokens: list[int], place: int) -> None:
        """Keep the largest, each context once: behind the same tokens stands the same activation."""
        if all(tokens[: place + 1] != known[: at + 1] for _, known, at in self.largest):
            self.largest = sorted([*self.largest, (length, tokens, place)], key=lambda one: -abs(one[0]))[:EXAMPLES]


def _watch(study: Study, parts: DirectionParts, wanted: Sequence[tuple[int, Part]]) -> list[_Watched]:
    lens, edit = study.lens, parts.edit
    functions = edit.functions(study.model, study.where)
    points = {edit.at.point(lens, layer): layer for layer, _ in wanted}
    found = [_Watched() for _ in wanted]
    count = 0
    for batch, prompts in _batches(study):
        # BOS is the same in every text, and often far larger than the rest.
        counted = batch.mask.bool()
        counted[:, 0] &= batch.mask.sum(1) == 1
        seen, mask = _before_edits(study, batch, prompts, functions, points)
        counted &= mask
        count += int(counted.sum())
        rows, positions = counted.nonzero(as_tuple=True)
        for name, x in seen.items():
            layer = points[name]
            activations = edit.at.to_units(widened(x))[counted]
            terms = parts.terms(activations, layer)
            alpha = edit.per_unit(study.where.strengths[layer])
            # A description has one strength for each unit, so strengths of different tokens are averaged.
            alphas = reduce(torch.atleast_1d(torch.as_tensor(alpha)).to(activations), "... units -> units", "mean")
            alphas = alphas.expand(edit.shape[0])
            for (at, part), one in zip(wanted, found, strict=True):
                if at == layer:
                    lengths, vectors = _term(terms, part, alphas)
                    one.displacement += lengths.sum().item()
                    one.vector = one.vector + reduce(vectors, "tokens d -> d", "sum")
                    for i in lengths.abs().topk(min(LOOKED_AT, len(lengths))).indices.tolist():
                        row = batch.tokens[rows[i], : int(batch.mask[rows[i]].sum())].tolist()
                        one.note(lengths[i].item(), row, int(positions[i]))
    for (_, part), one in zip(wanted, found, strict=True):
        one.vector = one.vector / max(count, 1)
        # Lengths in a plane have no sign, and do not add up.
        one.displacement = one.displacement / max(count, 1) if part.n == 1 else one.vector.norm().item()
    return found


def _marked(lens: Lens, tokens: list[int], place: int) -> str:
    """A text with one of its tokens between «»."""
    first = 1 if tokens[:1] == [bos_token(lens)] else 0
    ends = [len(lens.tokenizer.decode(tokens[first:end])) for end in (place, place + 1)] if place >= first else [0, 0]
    text = lens.tokenizer.decode(tokens[first:])
    token = text[ends[0] : ends[1]]
    blank = token[: len(token) - len(token.lstrip())]
    return f"{text[: ends[0]]}{blank}«{token.strip()}»{text[ends[1] :]}"


def _batches(study: Study) -> Iterator[tuple[Batch | ScoringBatch, list[int]]]:
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
    terms: DirectionTerms, part: Part, strengths: Float[Tensor, " units"]
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, "tokens d"]]:
    """What the edit adds along one direction: its signed length, in a plane the length, and the vector."""
    unit = part.unit
    factor = (terms.subspaces.keep if part.kept else terms.subspaces.drop)[unit, :, part.columns]
    slope = (terms.keep_slope if part.kept else terms.drop_slope)[:, unit]
    coefficients = strengths[unit] * (terms.keep if part.kept else terms.drop)[:, unit, part.columns]
    vectors = slope * einsum(coefficients, factor, "tokens k, d k -> tokens d")
    if part.n > 1:
        return vectors.norm(dim=-1), vectors
    return rearrange(coefficients, "tokens 1 -> tokens") * factor.norm(), vectors


def _tokens(
    lens: Lens, edit: SpectralEdit, layer: int, part: Part, vector: Float[Tensor, " d"]
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Tokens that a step along the vector raises and lowers most."""
    written = vector.double().cpu()
    if edit.at.per_head:
        z = torch.zeros(1, lens.n_heads, lens.d_head, dtype=torch.float64, device=lens.device)
        z[0, part.unit] = vector
        written = head_outputs(lens, layer, z)[0, part.unit]
        if (path := lens.norm_behind("attn_out", layer)) is not None:
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


def _examples(
    parts: DirectionParts, layer: int, part: Part, captured: Captured | None
) -> tuple[list[tuple[int, float]], list[str]]:
    """Demonstrations of largest |aⱼ|, or |bⱼ| for a column of U⁻, as (index, aⱼ), and their neutral texts."""
    if captured is None:
        return [], []
    unit, (subspaces, _), feature = part.unit, parts.factors(layer), parts.edit.feature
    mapped = feature.forward(captured.neutral(layer)[:, unit].to(subspaces.keep))
    centred = mapped if subspaces.centre is None else mapped - subspaces.centre[unit]
    factor = (subspaces.keep if part.kept else subspaces.drop)[unit, :, part.columns]
    along = einsum(centred, torch.nn.functional.normalize(factor, dim=0), "n d, d k -> n k")
    fired = along[:, 0] if part.n == 1 else along.norm(dim=-1)
    order = fired.abs().argsort(descending=True, stable=True)[:EXAMPLES].tolist()
    return [(i, fired[i].item()) for i in order], [captured.demonstrations[i].neutral for i in order]
