"""Heads and MLPs as nodes of a circuit, and runs in which any set of them has the values of another run.

A node is (layer, head), the head's `z`, or (layer, "mlp"), what the layer's MLP gives before an edit there. The `z` is
that behind an edit there, or in front of it where the edit itself is kept beside the nodes. Everything behind a node
that was exchanged is computed anew (docs/method.md 9.6).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from ..measure.scorer import ScoringBatch
from ..models.check import refuse_inference_tensors
from ..models.lens import HookFunction, Lens
from .integral import gradients_of, signed
from .patching import Hooks, by_row, check_z, repeated
from .study import Study

Node: TypeAlias = tuple[int, Any]
"""(layer, head) or (layer, "mlp")."""

MLP = "mlp"


def all_nodes(lens: Lens, *, mlps: bool = True) -> list[Node]:
    """The nodes of a model, layer by layer."""
    found: list[Node] = []
    for layer in range(lens.n_layers):
        found += [(layer, head) for head in range(lens.n_heads)]
        found += [(layer, MLP)] if mlps and lens.has_site("mlp_out", layer) else []
    return found


@dataclass(frozen=True)
class Run:
    """A run that nothing is exchanged in.

    Attributes:
        values: the contrast of each row.
        z, mlp: of each layer; no MLP where the layer has none.
    """

    values: Float[Tensor, " batch"]
    z: dict[int, Float[Tensor, "batch pos heads d_head"]]
    mlp: dict[int, Float[Tensor, "batch pos d_model"]]


@dataclass(frozen=True)
class Nodes:
    """The nodes of a study's model, and runs with some of them exchanged.

    Attributes:
        study: the edit and its contrasts.
        nodes: which.
        heads_unedited: whether a head's `z` is that in front of an edit of it, which then acts on what is put there.
    """

    study: Study
    nodes: tuple[Node, ...]
    heads_unedited: bool = False

    @classmethod
    def of(cls, study: Study, *, mlps: bool = True, heads_unedited: bool = False) -> "Nodes":
        """All nodes; raises UnsupportedModelError where hooks do not see the `z` that attention is made of."""
        check_z(study)
        return cls(study, tuple(all_nodes(study.lens, mlps=mlps)), heads_unedited)

    def edit_hooks(self, study: Study) -> Hooks:
        """What a study's edit does."""
        return study.activation_edit("patching").functions(study.model, study.where)

    def run(self, batch: ScoringBatch, edit: Hooks) -> Run:
        """The model with these hooks in it."""
        z: dict[int, Tensor] = {}
        mlp: dict[int, Tensor] = {}

        def save(into: dict[int, Tensor], layer: int) -> HookFunction:
            def hook(x: Tensor) -> None:
                into[layer] = x

            return hook

        with torch.no_grad():
            log_probs = self._log_probs(
                batch,
                edit,
                mlps=[(self._point(MLP, layer), save(mlp, layer)) for layer in self._mlp_layers],
                heads=[(self._point("z", layer), save(z, layer)) for layer in range(self.study.lens.n_layers)],
            )
        return Run(by_row(batch, log_probs), z, mlp)

    def exchanged(
        self, batch: ScoringBatch, sets: Sequence[Sequence[Node]], edit: Hooks, source: Run
    ) -> Float[Tensor, "sets batch"]:
        """The contrast of each row with the values of `source` in a set of nodes, for several sets in one pass."""
        chosen = [frozenset(one) for one in sets]

        def copies_of(x: Tensor) -> Tensor:
            return rearrange(x.clone(), "(copy batch) ... -> copy batch ...", copy=len(sets))

        def back(x: Tensor) -> Tensor:
            return rearrange(x, "copy batch ... -> (copy batch) ...")

        def heads(layer: int) -> HookFunction:
            def hook(z: Tensor) -> Tensor:
                copies = copies_of(z)
                for copy, nodes in enumerate(chosen):
                    own = [head for at, head in nodes if at == layer and head != MLP]
                    copies[copy, :, :, own] = source.z[layer][:, :, own]
                return back(copies)

            return hook

        def mlp(layer: int) -> HookFunction:
            def hook(x: Tensor) -> Tensor:
                copies = copies_of(x)
                for copy, nodes in enumerate(chosen):
                    if (layer, MLP) in nodes:
                        copies[copy] = source.mlp[layer]
                return back(copies)

            return hook

        anywhere = frozenset().union(*chosen)
        with torch.no_grad():
            log_probs = self._log_probs(
                repeated(batch, len(sets)),
                edit,
                mlps=[
                    (self._point(MLP, layer), mlp(layer)) for layer in sorted({at for at, n in anywhere if n == MLP})
                ],
                heads=[
                    (self._point("z", layer), heads(layer)) for layer in sorted({at for at, n in anywhere if n != MLP})
                ],
            )
        per_copy = rearrange(log_probs, "(copy n) -> copy n", copy=len(sets))
        return torch.stack([by_row(batch, one) for one in per_copy])

    def first_order(self, batch: ScoringBatch, source: Run) -> Float[Tensor, "batch nodes"]:
        """⟨∂f/∂node, source − here⟩ of every node, from one backward pass through the unedited run."""
        refuse_inference_tensors(self.study.lens)
        seen: dict[str, Tensor] = {}

        def record(name: str) -> HookFunction:
            def hook(x: Tensor) -> Tensor:
                seen[name] = x if x.requires_grad else x.detach().requires_grad_()
                # What stands before the first node needs no gradient, so recording begins only here.
                torch.set_grad_enabled(True)
                return seen[name]

            return hook

        z = {self._point("z", layer): layer for layer in range(self.study.lens.n_layers)}
        mlp = {self._point(MLP, layer): layer for layer in self._mlp_layers}
        with torch.no_grad():
            log_probs = self._log_probs(batch, (), mlps=[], heads=[(name, record(name)) for name in (*z, *mlp)])
            slopes = gradients_of(signed(batch, log_probs).sum(), list(seen.values()))
        found: dict[Node, Tensor] = {}
        for (name, x), slope in zip(seen.items(), slopes, strict=True):
            layer = z.get(name, mlp.get(name))
            assert layer is not None
            if name in z:
                moved = source.z[layer].float() - x.detach().float()
                values = einsum(slope.float(), moved, "batch pos head d, batch pos head d -> batch head")
                found |= {(layer, head): values[:, head] for head in range(values.shape[1])}
            else:
                moved = source.mlp[layer].float() - x.detach().float()
                found[layer, MLP] = einsum(slope.float(), moved, "batch pos d, batch pos d -> batch")
        return torch.stack([found[node].cpu() for node in self.nodes], 1).double()

    @property
    def _mlp_layers(self) -> list[int]:
        return [layer for layer, name in self.nodes if name == MLP]

    def _point(self, kind: str, layer: int) -> str:
        return self.study.lens.point("mlp_out" if kind == MLP else kind, layer)

    def _log_probs(self, batch: ScoringBatch, edit: Hooks, *, mlps: list[Any], heads: list[Any]) -> Tensor:
        # An MLP is a node without what an edit does to its output, a head is one with it, or without.
        hooks = [*mlps, *heads, *edit] if self.heads_unedited else [*mlps, *edit, *heads]
        with self.study.lens.hooks(hooks):
            return self.study.scorer.batch_log_probs(batch)
