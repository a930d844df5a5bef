"""Patching a head's `z` between the edited and the unedited run (SEA.md section 7, Heads).

- *sufficiency*: f(unedited run with the head's edited-run z, at every position) − f(unedited);
- *necessity*: f(edited) − f(edited run with the head's unedited-run z);
- *gradient*: ⟨∂f/∂z, z_edited − z_unedited⟩ of every head from one backward pass through the unedited run, a
  first-order estimate of sufficiency (attribution patching, Nanda 2023), reported with its correlation to the exact
  values on a sample of heads.

The clean runs of a batch of contrasts are made once for all heads. Patched runs are batched over contrasts and heads
alike, up to `batch_size` sequences. Memory: the `z` of both clean runs, 2 · layers · batch · positions · heads · d_head
numbers; "gradient" adds what autograd keeps of a forward pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from .._support.progress import tracked
from ..errors import UnsupportedModelError
from ..measure.scorer import Scorer, ScoringBatch
from ..models.lens import HookFunction, Lens
from .integral import gradients_of, signed

METHODS = ("sufficiency", "necessity", "gradient")

Head = tuple[int, int]
"""(layer, head)."""


@dataclass(frozen=True)
class Patcher:
    """The runs that are patched between.

    Attributes:
        scorer: of the contrasts.
        edits: hooks of the edit.
        batch_size: sequences at a time.
    """

    scorer: Scorer
    edits: Sequence[tuple[str, HookFunction]]
    batch_size: int

    @property
    def lens(self) -> Lens:
        """The model."""
        return self.scorer.lens

    @property
    def heads(self) -> list[Head]:
        """All heads of the model."""
        return [(layer, head) for layer in range(self.lens.n_layers) for head in range(self.lens.n_heads)]

    def patched(
        self, method: str, heads: Sequence[Head], *, progress: bool
    ) -> tuple[Float[Tensor, "contrasts patched"], Float[Tensor, " contrasts"]]:
        """Sufficiency or necessity of some heads, and the effect, for each contrast."""
        self.check()
        items = torch.zeros(self.scorer.n // 2, len(heads), dtype=torch.float64)
        effects = torch.zeros(self.scorer.n // 2, dtype=torch.float64)
        work = sum(len(heads) for _ in self.scorer.batches)
        steps = tracked(self._patches(method, heads, items, effects), method, work, show=progress)
        for _ in steps:
            pass
        return items, effects

    def _patches(self, method: str, heads: Sequence[Head], items: Tensor, effects: Tensor) -> Iterator[None]:
        """Fill in items and effects; one step for each head and batch of contrasts."""
        sign = 1.0 if method == "sufficiency" else -1.0
        for batch in self.scorer.batches:
            with torch.no_grad():
                unedited, plain_z = self._clean(batch, [])
                edited, edited_z = self._clean(batch, self.edits)
                effects.index_add_(0, batch.items, edited - unedited)
                base = (unedited, [], edited_z) if method == "sufficiency" else (edited, self.edits, plain_z)
                clean, hooks, source = base
                at_once = max(1, self.batch_size // len(batch.tokens))
                for start in range(0, len(heads), at_once):
                    chunk = heads[start : start + at_once]
                    values = self._run_patched(batch, chunk, hooks, source)
                    change = sign * (values - rearrange(clean, "batch -> 1 batch"))
                    for place, row in enumerate(change, start):
                        items[:, place].index_add_(0, batch.items, row)
                        yield

    def _clean(
        self, batch: ScoringBatch, hooks: Sequence[tuple[str, HookFunction]]
    ) -> tuple[Float[Tensor, " batch"], list[Float[Tensor, "batch pos heads d_head"]]]:
        """The contrast of each row, and `z` of every layer."""
        z: dict[int, Tensor] = {}

        def save(layer: int) -> HookFunction:
            def hook(x: Tensor) -> None:
                z[layer] = x

            return hook

        saving = [(self.lens.point("z", layer), save(layer)) for layer in range(self.lens.n_layers)]
        with self.lens.hooks([*hooks, *saving]):
            log_probs = self.scorer.batch_log_probs(batch)
        return _by_row(batch, log_probs), [z[layer] for layer in range(self.lens.n_layers)]

    def _run_patched(
        self,
        batch: ScoringBatch,
        heads: Sequence[Head],
        hooks: Sequence[tuple[str, HookFunction]],
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

        patches = [(self.lens.point("z", layer), patch(layer)) for layer in sorted({layer for layer, _ in heads})]
        with self.lens.hooks([*hooks, *patches]):
            values = self.scorer.batch_log_probs(_repeated(batch, len(heads)))
        per_copy = rearrange(values, "(copy n) -> copy n", copy=len(heads))
        return torch.stack([_by_row(batch, copy) for copy in per_copy])

    def gradients(self, *, progress: bool) -> tuple[Float[Tensor, "contrasts patched"], Float[Tensor, " contrasts"]]:
        """First-order estimate of every head's sufficiency, and the effect, for each contrast."""
        self.check()
        items = torch.zeros(self.scorer.n // 2, len(self.heads), dtype=torch.float64)
        effects = torch.zeros(self.scorer.n // 2, dtype=torch.float64)
        batches = self.scorer.batches
        for batch in tracked(batches, "gradient", len(batches), show=progress):
            with torch.no_grad():
                edited, edited_z = self._clean(batch, self.edits)
            unedited, plain_z, slopes = self._gradient(batch)
            effects.index_add_(0, batch.items, edited - unedited)
            layers = [
                einsum(
                    slope.float(), (after.float() - before.float()), "batch pos head d, batch pos head d -> batch head"
                )
                for slope, before, after in zip(slopes, plain_z, edited_z, strict=True)
            ]
            items.index_add_(0, batch.items, rearrange(layers, "layer batch head -> batch (layer head)").double().cpu())
        return items, effects

    def _gradient(self, batch: ScoringBatch) -> tuple[Float[Tensor, " batch"], list[Tensor], list[Tensor]]:
        """The unedited run: each row's contrast, `z` of every layer, and the contrast's gradient in it."""
        z: dict[int, Tensor] = {}

        def record(layer: int) -> HookFunction:
            def hook(x: Tensor) -> Tensor:
                z[layer] = x if x.requires_grad else x.detach().requires_grad_()
                # What stands before the first head's output needs no gradient, so recording begins only here.
                torch.set_grad_enabled(True)
                return z[layer]

            return hook

        layers = range(self.lens.n_layers)
        with torch.no_grad(), self.lens.hooks([(self.lens.point("z", layer), record(layer)) for layer in layers]):
            log_probs = self.scorer.batch_log_probs(batch)
            gradients = gradients_of(signed(batch, log_probs).sum(), [z[layer] for layer in layers])
        return _by_row(batch, log_probs.detach()), [z[layer].detach() for layer in layers], gradients

    def check(self) -> None:
        """Refuse a model whose attention output does not come from the `z` that its hooks see.

        Raises:
            UnsupportedModelError: names the first layer where taking all of z away changes nothing.
        """
        batch = self.scorer.batches[0]
        tokens, mask = batch.tokens[:1], batch.mask[:1]
        layers = range(self.lens.n_layers)
        points = [self.lens.point("attn_out", layer) for layer in layers]
        heads = [self.lens.point("z", layer) for layer in layers]
        with torch.no_grad():
            whole = self.lens.read(tokens, mask, points)
            for layer, (point, z) in enumerate(zip(points, heads, strict=True)):
                size = self.lens.read(tokens, mask, [z])[z].abs().max()
                without = self.lens.read(tokens, mask, [point], [(z, torch.zeros_like)])[point]
                # An output of zero has been taken away by a hook of the user's, and carries nothing indeed.
                if size > 0 and whole[point].any() and torch.equal(without, whole[point]):
                    raise UnsupportedModelError(
                        f"model {self.lens.name!r}: the attention output at layer {layer} does not change by any of "
                        f"its {whole[point].abs().max():.2e} when all heads' z, up to {size:.2e}, are taken away, so "
                        f"patching heads would show nothing"
                    )


def _by_row(batch: ScoringBatch, log_probs: Float[Tensor, " n"]) -> Float[Tensor, " batch"]:
    """Each row's share of its item's contrast, float64 on the CPU."""
    rows = torch.zeros(len(batch.tokens), dtype=torch.float64)
    return rows.index_add_(0, batch.row, signed(batch, log_probs).double().cpu())


def _repeated(batch: ScoringBatch, copies: int) -> ScoringBatch:
    """The batch, several times over, one copy behind the other."""
    n = len(batch.tokens)
    rows = rearrange(torch.arange(copies) * n, "copy -> copy 1") + batch.row
    return ScoringBatch(
        repeat(batch.tokens, "row pos -> (copy row) pos", copy=copies),
        repeat(batch.mask, "row pos -> (copy row) pos", copy=copies),
        batch.items.repeat(copies),
        rearrange(rows, "copy n -> (copy n)"),
        batch.position.repeat(copies),
        batch.token.repeat(copies),
        batch.completion.repeat(copies),
    )
