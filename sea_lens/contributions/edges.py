"""Ways from an edited layer into what reads the stream behind it, and runs that let a change through one of them alone.

An edge is (layer, to_layer, to, way): from the displacement of an edited layer into a head of a later layer by its
queries, keys or values, into an MLP, or into the logits. Everything in front of the receiver stays as it was, so that
no change comes by another component; everything behind it is computed anew (path patching; docs/method.md 9.7). From
"all" comes the whole change of the stream into a head instead, by whatever component it came.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ..measure.scorer import ScoringBatch
from ..models.lens import HookFunction, Lens
from .integral import signed
from .patching import Hooks, by_row
from .study import Study

Edge: TypeAlias = tuple[Any, int, Any, str]
"""(layer or "all", to_layer, to, way): to a head by a way of `READ`, to "mlp" or "logits" by "in"."""

WAYS = ("q", "k", "v")
ALL, MLP, LOGITS, IN, PATTERN = "all", "mlp", "logits", "in", "qk"
# What a head reads by each way: by queries and keys together its attention pattern moves.
READ = {**{way: (way,) for way in WAYS}, PATTERN: ("q", "k"), ALL: WAYS}
# Relative error up to which what is read must be what the model computes.
TOLERANCE = 1e-3

Stream: TypeAlias = Mapping[int, Float[Tensor, "batch pos d_model"]]
"""Changes of the residual stream in front of each layer, and behind the last one."""


def edges_of(study: Study, *, whole: bool = False) -> list[Edge]:
    """All edges of a study's edit; those from "all" too where `whole` is set."""
    lens, n = study.lens, study.lens.n_layers
    found: list[Edge] = []
    for sender in study.layers:
        for to in range(n):
            if to > sender:
                found += [(sender, to, head, way) for head in range(lens.n_heads) for way in WAYS]
            if lens.has_site("mlp_out", to) and (to > sender or (to == sender and feeds_mlp(study))):
                found.append((sender, to, MLP, IN))
        found.append((sender, n, LOGITS, IN))
    if whole:
        places = [(to, head) for to in range(n) for head in range(lens.n_heads)]
        found += [(ALL, *place, way) for place in places for way in READ]
    return found


def is_parallel(lens: Lens) -> bool:
    """Whether attention and MLP of a block read the same stream."""
    return bool(getattr(lens.model.cfg, "parallel_attn_mlp", False))


def feeds_mlp(study: Study) -> bool:
    """Whether an edit's displacement is read by the MLP of its own layer."""
    return study.edit.site in ("attn_out", "z") and not is_parallel(study.lens)


@dataclass(frozen=True)
class Clean:
    """What stands in the stream, and what is added to it, in a run.

    Attributes:
        values: the contrast of each row.
        stream: in front of each layer, and behind the last.
        attn, mlp: what each layer's attention and MLP add.
        z: of each layer.
    """

    values: Float[Tensor, " batch"]
    stream: dict[int, Float[Tensor, "batch pos d_model"]]
    attn: dict[int, Float[Tensor, "batch pos d_model"]]
    mlp: dict[int, Float[Tensor, "batch pos d_model"]]
    z: dict[int, Float[Tensor, "batch pos heads d_head"]]


@dataclass(frozen=True)
class Edges:
    """The edges of a study, and the runs that they are measured in, one batch of contrasts at a time.

    Attributes:
        study: the edit and its contrasts.
        edges: those that are wanted.
    """

    study: Study
    edges: tuple[Edge, ...]

    @property
    def lens(self) -> Lens:
        """The model."""
        return self.study.lens

    @property
    def senders(self) -> list[Any]:
        """Where the edges begin."""
        return list(dict.fromkeys(edge[0] for edge in self.edges))

    def clean(self, batch: ScoringBatch, hooks: Hooks = ()) -> Clean:
        """A run with these hooks in it."""
        seen = self.seen(batch, ("resid_pre", "z", "attn_out", "mlp_out"), hooks)
        values = seen.pop("values")
        return Clean(values, self.streams(seen), seen["attn_out"], seen["mlp_out"], seen["z"])

    def displacements(self, batch: ScoringBatch, clean: Clean) -> dict[Any, dict[int, Tensor]]:
        """What each sender changes of the stream in front of every later layer, in the edited run."""
        study, lens = self.study, self.lens
        edit = study.activation_edit("mediation")
        moved: dict[int, Tensor] = {}

        def watching(layer: int, function: HookFunction) -> HookFunction:
            def hook(x: Tensor) -> Tensor:
                out = function(x)
                assert out is not None
                moved[layer] = out - x
                return out

            return hook

        functions = zip(study.layers, edit.functions(study.model, study.where), strict=True)
        edited = self.clean(batch, [(name, watching(layer, one)) for layer, (name, one) in functions])
        if edit.at.per_head:
            # What heads write may go through a norm, so that it is taken from runs with this layer unedited.
            for layer in study.layers:
                others = {at: s for at, s in study.where.strengths.items() if at != layer}
                hooks = edit.functions(study.model, study.where.with_strengths(others)) if others else []
                moved[layer] = edited.attn[layer] - self.clean(batch, hooks).attn[layer]
        found: dict[Any, dict[int, Tensor]] = {
            layer: dict.fromkeys(range(layer + 1, lens.n_layers + 1), moved[layer]) for layer in study.layers
        }
        if ALL in self.senders:
            found[ALL] = {at: edited.stream[at] - x for at, x in clean.stream.items()}
        return found

    def streams(self, seen: Mapping[str, Any]) -> dict[int, Tensor]:
        """The stream in front of each layer and behind the last, of what `seen` gives."""
        return {**seen["resid_pre"], self.lens.n_layers: seen["resid_post"][self.lens.n_layers - 1]}

    def seen(
        self, batch: ScoringBatch, kinds: Sequence[str], hooks: Hooks, *, recorded: bool = False
    ) -> dict[str, Any]:
        """Activations by kind and layer in a run, after these hooks, and its contrast."""
        found: dict[str, Any] = {kind: {} for kind in kinds}

        def save(kind: str, layer: int) -> HookFunction:
            def hook(x: Tensor) -> Tensor | None:
                # The stream begins with a leaf, so that everything behind it is recorded. What a hook point shows may
                # be a copy, and is a part of the graph only where it is given back.
                found[kind][layer] = x.detach().requires_grad_() if recorded and not x.requires_grad else x
                return found[kind][layer] if recorded else None

            return hook

        points = [
            (kind, layer) for kind in kinds for layer in range(self.lens.n_layers) if self.lens.has_site(kind, layer)
        ]
        if "resid_pre" in kinds:
            found["resid_post"] = {}
            points.append(("resid_post", self.lens.n_layers - 1))
        saving = [(self.lens.point(kind, layer), save(kind, layer)) for kind, layer in points]
        with torch.set_grad_enabled(recorded), self.lens.hooks([*hooks, *saving]):
            log_probs = self.study.scorer.batch_log_probs(batch)
        found["values"] = by_row(batch, log_probs.detach())
        if recorded:
            found["total"] = signed(batch, log_probs).sum()
        return found
