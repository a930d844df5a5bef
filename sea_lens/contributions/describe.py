"""What a singular direction stands for: the tokens that it raises and lowers, and the texts that it fires on."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from ..edits.where import LayerChoice, Strength, strength_of_layers
from ..models.lens import HookFunction, Lens
from ..models.readout import FINAL_NORM, head_outputs, probe_norm
from ..models.tokens import Batch, batches, encode
from ..spectral.capturing import neutral_activations
from ..spectral.edit import SpectralEdit
from ..spectral.terms import DirectionTerms, direction_terms
from ..texts.demonstrations import Contrasts, Demonstrations
from ..texts.items import Demonstration

TOKENS = 8
EXAMPLES = 5
BATCH_SIZE = 16


@dataclass(frozen=True)
class DirectionDescription:
    """What a singular direction stands for.

    Attributes:
        displacement: mean of the signed length of what the edit adds along the direction, over all tokens of the
            contrasts' prompts but BOS.
        raises, lowers: tokens whose logits the mean displacement raises and lowers most when it is read off by the
            final norm's gain and the unembedding alone, as (token, change of logit for a unit step); the latter is
            relative to the mean over the vocabulary, which moves no probability.
        fires_on: the demonstrations whose neutral activation is largest along the direction, as (index, aⱼ), aⱼ as
            in `shares`; empty where no demonstrations were given.
    """

    displacement: float
    raises: list[tuple[str, float]]
    lowers: list[tuple[str, float]]
    fires_on: list[tuple[int, float]]


def describe_directions(
    model: Any,
    edit: SpectralEdit,
    directions: Sequence[tuple[Any, ...]],
    contrasts: Contrasts,
    demonstrations: Iterable[Demonstration] | None = None,
    layers: LayerChoice = "all",
    strength: Strength = 1.0,
    combine: str | None = None,
    *,
    prepend_bos: bool = True,
) -> list[DirectionDescription]:
    """Describe directions of U⁺ and U⁻.

    The sign of a singular vector is arbitrary; a direction is told by what the edit does along it: by the mean
    displacement along it over the tokens of the contrasts' prompts, in the edited run.

    Args:
        model: a TransformerLens model.
        edit: the edit.
        directions: labels as in `DirectionContributions`, of sides "+" and "-".
        contrasts: whose prompts the edit is watched on.
        demonstrations: to find those that a direction fires on.
        layers, strength, combine: as in `applied`.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
    """
    lens = Lens.of(model)
    wanted = sorted({label[0] for label in directions})
    combine = combine or edit.combines[0]
    moved = _mean_displacements(lens, edit, directions, contrasts, layers, strength, combine, prepend_bos)
    demonstrations = None if demonstrations is None else Demonstrations.of(demonstrations)
    neutral = neutral_activations(model, edit, demonstrations, wanted) if demonstrations is not None else {}
    return [
        DirectionDescription(
            displacement,
            *_tokens(lens, edit, label, vector),
            _examples(edit, label, neutral[label[0]]) if neutral else [],
        )
        for label, (displacement, vector) in zip(directions, moved, strict=True)
    ]


def _mean_displacements(
    lens: Lens,
    edit: SpectralEdit,
    directions: Sequence[tuple[Any, ...]],
    contrasts: Contrasts,
    layers: LayerChoice,
    strength: Strength,
    combine: str,
    prepend_bos: bool,
) -> list[tuple[float, Float[Tensor, " d"]]]:
    """Mean of what the edit adds along each direction over the prompts' tokens: length and vector."""
    prompts = [encode(lens, contrast.prompt, prepend_bos=prepend_bos) for contrast in contrasts]
    functions = edit.functions(lens.model, layers=layers, strength=strength, combine=combine)
    strengths = strength_of_layers(strength, edit.choose_layers(layers))
    wanted = {edit.at.point(lens, label[0]): label[0] for label in directions}
    sums: list[tuple[float, Any]] = [(0.0, 0.0)] * len(directions)
    count = 0
    for batch in batches(prompts, BATCH_SIZE):
        # BOS is the same in every text, and often far larger than the rest.
        counted = batch.mask.bool()
        counted[:, 0] &= batch.mask.sum(1) == 1
        count += int(counted.sum())
        for name, x in _before_edits(lens, batch, functions, wanted).items():
            layer = wanted[name]
            activations = edit.at.to_units(x.to(torch.promote_types(x.dtype, torch.float32)))[counted]
            subspaces = edit.subspaces[layer].to(activations.device, activations.dtype)
            terms = direction_terms(activations, subspaces, edit.feature, combine)
            alpha = edit.per_unit(strengths[layer])
            # A direction is told by one number for each unit: strengths of different tokens are averaged.
            alphas = reduce(
                torch.atleast_1d(torch.as_tensor(alpha)).detach().to(activations), "... units -> units", "mean"
            )
            alphas = alphas.expand(len(subspaces.keep))
            for place, label in enumerate(directions):
                if label[0] == layer:
                    length, vector = _term(terms, label, alphas)
                    total = reduce(vector, "tokens d -> d", "sum")
                    sums[place] = (sums[place][0] + length.sum().item(), sums[place][1] + total)
    return [(length / count, vector / count) for length, vector in sums]


def _before_edits(
    lens: Lens, batch: Batch, functions: Iterable[tuple[str, HookFunction]], wanted: Container[str]
) -> dict[str, Tensor]:
    """Activations of an edited run as they stand before the edits, by hook point."""
    seen: dict[str, Tensor] = {}

    def watching(name: str, function: HookFunction) -> HookFunction:
        def hook(x: Tensor) -> Tensor | None:
            if name in wanted:
                seen[name] = x
            return function(x)

        return hook

    with torch.no_grad(), lens.hooks([(name, watching(name, function)) for name, function in functions]):
        lens.forward(batch.tokens, batch.mask)
    return seen


def _term(
    terms: DirectionTerms, label: tuple[Any, ...], strengths: Float[Tensor, " units"]
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, "tokens d"]]:
    """What the edit adds along one direction: its coefficient, and the vector."""
    unit, side, index = (label[1] if len(label) == 4 else 0), label[-2], label[-1]
    kept = side == "+"
    factor = (terms.subspaces.keep if kept else terms.subspaces.drop)[unit, :, index]
    slope = (terms.keep_slope if kept else terms.drop_slope)[:, unit]
    coefficient = strengths[unit] * (terms.keep if kept else terms.drop)[:, unit, index]
    return coefficient, rearrange(coefficient, "tokens -> tokens 1") * slope * factor


def _tokens(
    lens: Lens, edit: SpectralEdit, label: tuple[Any, ...], vector: Float[Tensor, " d"]
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Tokens that a step along the vector raises and lowers most."""
    layer = label[0]
    written = vector.double().cpu()
    if edit.at.per_head:
        z = torch.zeros(1, lens.n_heads, lens.d_head, dtype=torch.float64, device=lens.device)
        z[0, label[1]] = vector
        written = head_outputs(lens, layer, z)[0, label[1]]
        if (path := lens.attention_norm(layer)) is not None:
            # Behind attention stands a norm; its scale, which all heads share, changes no order of tokens.
            written = probe_norm(lens, path).apply_linearly(written, torch.ones(1, device=lens.device))
    written = written.to(lens.device)
    norm = probe_norm(lens, FINAL_NORM)
    read = norm.apply_linearly(written, torch.ones(1, device=lens.device, dtype=torch.float64))
    step = read / written.norm().clamp_min(1e-300)
    weight = lens.unembedding
    logits = einsum(step.to(weight.dtype), weight, "d_model, d_model d_vocab -> d_vocab").float().cpu()
    logits = logits - logits.mean()
    count = min(TOKENS, len(logits))
    sides = []
    for order in (logits.topk(count), logits.topk(count, largest=False)):
        sides.append(
            [(lens.tokenizer.decode([i]), value) for value, i in zip(*(part.tolist() for part in order), strict=True)]
        )
    return sides[0], sides[1]


def _examples(
    edit: SpectralEdit, label: tuple[Any, ...], neutral: Float[Tensor, "n units d"]
) -> list[tuple[int, float]]:
    """Demonstrations of largest |aⱼ|."""
    unit = label[1] if len(label) == 4 else 0
    subspaces = edit.subspaces[label[0]]
    mapped = edit.feature.forward(neutral[:, unit])
    centred = mapped if subspaces.centre is None else mapped - subspaces.centre[unit]
    factor = (subspaces.keep if label[-2] == "+" else subspaces.drop)[unit, :, label[-1]]
    fired = einsum(centred, factor, "n d, d -> n")
    order = fired.abs().argsort(descending=True, stable=True)[:EXAMPLES]
    return [(i, fired[i].item()) for i in order.tolist()]
