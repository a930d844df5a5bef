"""Patching a head's `z` between the edited and the unedited run (docs/method.md 9.2 and 9.3).

- *sufficiency*: f(unedited run with the head's edited-run z, at every position) − f(unedited);
- *necessity*: f(edited) − f(edited run with the head's unedited-run z);
- *gradient*: ⟨∂f/∂z, z_edited − z_unedited⟩ of every head from one backward pass through the unedited run, a
  first-order estimate of sufficiency (attribution patching, Nanda 2023), reported with its correlation to the exact
  values on a sample of heads.

The clean runs of a batch of contrasts are made once for all heads and methods, the unedited one for all control edits
too. Patched runs are batched over contrasts and heads alike, up to `batch_size` sequences. Memory: the `z` of both
clean runs of a batch, 2 · layers · batch · positions · heads · d_head numbers; "gradient" adds the gradient of every
`z`, and what autograd keeps of a forward pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from .._support.processes import mine, summed
from .._support.progress import tracked
from ..edits.base import Edit
from ..errors import UnsupportedModelError
from ..measure.scorer import ScoringBatch
from ..models.check import refuse_inference_tensors
from ..models.lens import HookFunction, Lens
from .integral import gradients_of, signed
from .study import Study

METHODS = ("sufficiency", "necessity", "gradient")

Head = tuple[int, int]
"""(layer, head)."""

Hooks = Sequence[tuple[str, HookFunction]]


@dataclass(frozen=True)
class Patched:
    """What one method found under one edit, for each contrast.

    Attributes:
        items: of each head.
        effects: of the whole edit.
    """

    items: Float[Tensor, "contrasts patched"]
    effects: Float[Tensor, " contrasts"]


@dataclass(frozen=True)
class _Clean:
    """A run that nothing is patched in: each row's contrast, `z` of every layer, and the gradient to each `z`.

    The slopes are empty where no gradient is wanted.
    """

    values: Float[Tensor, " batch"]
    z: list[Float[Tensor, "batch pos heads d_head"]]
    slopes: list[Float[Tensor, "batch pos heads d_head"]]


def all_heads(lens: Lens) -> list[Head]:
    """All heads of a model."""
    return [(layer, head) for layer in range(lens.n_layers) for head in range(lens.n_heads)]


def patched(study: Study, methods: Mapping[str, Sequence[Edit]], heads: Sequence[Head]) -> dict[str, list[Patched]]:
    """Values of some heads by several methods, which share their clean runs.

    Args:
        study: the edit and its contrasts.
        methods: of `METHODS`, each with the control edits that it is to be measured under as well.
        heads: which; "gradient" gives those of all heads in any case.

    Returns:
        For each method what it found under the edit, then under each of its controls; in nats.

    Raises:
        UnsupportedModelError: the attention output of a layer does not come from the `z` that hooks see; names it.
    """
    check_z(study)
    contrasts = study.scorer.n // 2
    # Every edit once, with the methods that want it.
    studies = {id(study.edit): study}
    for control in (one for some in methods.values() for one in some):
        studies.setdefault(id(control), study.under(control))
    wanted = {
        key: [method for method, some in methods.items() if one is study or any(one.edit is c for c in some)]
        for key, one in studies.items()
    }

    def empty(method: str) -> Patched:
        width = len(all_heads(study.lens)) if method == "gradient" else len(heads)
        return Patched(torch.zeros(contrasts, width, dtype=torch.float64), torch.zeros(contrasts, dtype=torch.float64))

    found = {(key, method): empty(method) for key, some in wanted.items() for method in some}
    at_each = [1 if method == "gradient" else len(heads) for _, method in found]
    batches = mine(study.scorer.batches)

    def filled() -> list[Tensor]:
        steps = _steps(study, batches, studies, found, heads)
        for _ in tracked(steps, "patching", len(batches) * sum(at_each), show=study.progress):
            pass
        return [tensor for one in found.values() for tensor in (one.items, one.effects)]

    summed(filled)
    return {
        method: [found[id(edit), method] for edit in (study.edit, *controls)] for method, controls in methods.items()
    }


def _steps(
    study: Study,
    batches: Sequence[ScoringBatch],
    studies: Mapping[int, Study],
    found: Mapping[tuple[int, str], Patched],
    heads: Sequence[Head],
) -> Iterator[None]:
    """Fill in what is found; one step for each batch of contrasts, edit, method and head."""
    with_slopes = any(method == "gradient" for _, method in found)
    for batch in batches:
        unedited = _with_slopes(study, batch) if with_slopes else _clean(study, batch, [])
        for key, one in studies.items():
            hooks = one.activation_edit("patching").functions(one.model, one.where)
            edited = _clean(study, batch, hooks)
            for (of, method), result in found.items():
                if of != key:
                    continue
                result.effects.index_add_(0, batch.items, edited.values - unedited.values)
                if method == "gradient":
                    result.items.index_add_(0, batch.items, _first_order(unedited, edited))
                    yield
                elif method == "sufficiency":
                    yield from _exchange(study, batch, heads, result.items, 1.0, unedited, [], edited.z)
                else:
                    yield from _exchange(study, batch, heads, result.items, -1.0, edited, hooks, unedited.z)


def _first_order(unedited: _Clean, edited: _Clean) -> Float[Tensor, "batch heads"]:
    layers = [
        einsum(slope.float(), after.float() - before.float(), "batch pos head d, batch pos head d -> batch head").cpu()
        for slope, before, after in zip(unedited.slopes, unedited.z, edited.z, strict=True)
    ]
    return rearrange(layers, "layer batch head -> batch (layer head)").double()


def _exchange(
    study: Study,
    batch: ScoringBatch,
    heads: Sequence[Head],
    items: Float[Tensor, "contrasts patched"],
    sign: float,
    clean: _Clean,
    hooks: Hooks,
    source: Sequence[Float[Tensor, "batch pos heads d_head"]],
) -> Iterator[None]:
    """Add to items what each head's z from `source` changes in the clean run with these hooks, times a sign."""
    at_once = max(1, study.batch_size // len(batch.tokens))
    for start in range(0, len(heads), at_once):
        values = _run_patched(study, batch, heads[start : start + at_once], hooks, source)
        change = sign * (values - rearrange(clean.values, "batch -> 1 batch"))
        for place, row in enumerate(change, start):
            items[:, place].index_add_(0, batch.items, row)
            yield


def _z_points(lens: Lens) -> list[str]:
    return [lens.point("z", layer) for layer in range(lens.n_layers)]


def _clean(study: Study, batch: ScoringBatch, hooks: Hooks) -> _Clean:
    z: dict[str, Tensor] = {}

    def save(name: str) -> HookFunction:
        def hook(x: Tensor) -> None:
            z[name] = x

        return hook

    points = _z_points(study.lens)
    with torch.no_grad(), study.lens.hooks([*hooks, *((name, save(name)) for name in points)]):
        log_probs = study.scorer.batch_log_probs(batch)
    return _Clean(by_row(batch, log_probs), [z[name] for name in points], [])


def _with_slopes(study: Study, batch: ScoringBatch) -> _Clean:
    """The unedited run, with the gradient of the contrast with respect to every head's z."""
    refuse_inference_tensors(study.lens)
    z: dict[str, Tensor] = {}

    def record(name: str) -> HookFunction:
        def hook(x: Tensor) -> Tensor:
            z[name] = x if x.requires_grad else x.detach().requires_grad_()
            # What stands before the first head's output needs no gradient, so recording begins only here.
            torch.set_grad_enabled(True)
            return z[name]

        return hook

    points = _z_points(study.lens)
    with torch.no_grad(), study.lens.hooks([(name, record(name)) for name in points]):
        log_probs = study.scorer.batch_log_probs(batch)
        slopes = gradients_of(signed(batch, log_probs).sum(), [z[name] for name in points])
    return _Clean(by_row(batch, log_probs.detach()), [z[name].detach() for name in points], slopes)


def _run_patched(
    study: Study,
    batch: ScoringBatch,
    heads: Sequence[Head],
    hooks: Hooks,
    source: Sequence[Float[Tensor, "batch pos heads d_head"]],
) -> Float[Tensor, "copies batch"]:
    """The contrast of each row with one head's z taken from `source`, for several heads in one forward pass."""

    def patch(layer: int) -> HookFunction:
        def hook(z: Tensor) -> Tensor:
            copies = rearrange(z.clone(), "(copy batch) pos head d -> copy batch pos head d", copy=len(heads))
            for copy, (at, head) in enumerate(heads):
                if at == layer:
                    copies[copy, :, :, head] = source[layer][:, :, head]
            return rearrange(copies, "copy batch pos head d -> (copy batch) pos head d")

        return hook

    patches = [(study.lens.point("z", layer), patch(layer)) for layer in sorted({layer for layer, _ in heads})]
    with torch.no_grad(), study.lens.hooks([*hooks, *patches]):
        values = study.scorer.batch_log_probs(repeated(batch, len(heads)))
    per_copy = rearrange(values, "(copy n) -> copy n", copy=len(heads))
    return torch.stack([by_row(batch, copy) for copy in per_copy])


def check_z(study: Study) -> None:
    """Refuse a model whose attention output does not come from the `z` that its hooks see.

    Raises:
        UnsupportedModelError: names the first layer where taking all of z away changes nothing.
    """
    lens, batch = study.lens, study.scorer.batches[0]
    tokens, mask = batch.tokens[:1], batch.mask[:1]
    points = [lens.point("attn_out", layer) for layer in range(lens.n_layers)]
    with torch.no_grad():
        whole = lens.read(tokens, mask, [*_z_points(lens), *points])
        for layer, (point, z) in enumerate(zip(points, _z_points(lens), strict=True)):
            size = whole[z].abs().max()
            without = lens.read(tokens, mask, [point], [(z, torch.zeros_like)])[point]
            # An output of zero has been taken away by a hook of the user's, and carries nothing indeed.
            if size > 0 and whole[point].any() and torch.equal(without, whole[point]):
                raise UnsupportedModelError(
                    f"model {lens.name!r}: the attention output at layer {layer} does not change by any of "
                    f"its {whole[point].abs().max():.2e} when all heads' z, up to {size:.2e}, are taken away, so "
                    f"patching heads would show nothing"
                )


def by_row(batch: ScoringBatch, log_probs: Float[Tensor, " n"]) -> Float[Tensor, " batch"]:
    """Each row's share of its item's contrast, float64 on the CPU."""
    rows = torch.zeros(len(batch.tokens), dtype=torch.float64)
    return rows.index_add_(0, batch.row, signed(batch, log_probs).double().cpu())


def repeated(batch: ScoringBatch, copies: int) -> ScoringBatch:
    """The batch, several times over, one copy behind the other."""
    n = len(batch.tokens)
    rows = rearrange(torch.arange(copies) * n, "copy -> copy 1") + batch.row
    return ScoringBatch(
        repeat(batch.tokens, "row pos -> (copy row) pos", copy=copies),
        repeat(batch.mask, "row pos -> (copy row) pos", copy=copies),
        batch.items.repeat(copies),
        batch.prompts.repeat(copies),
        rearrange(rows, "copy n -> (copy n)"),
        batch.position.repeat(copies),
        batch.token.repeat(copies),
        batch.completion.repeat(copies),
    )
