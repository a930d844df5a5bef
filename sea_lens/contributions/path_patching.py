"""What single edges let through, exactly: path patching (docs/method.md 9.7)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .._support.processes import mine, summed
from .._support.progress import tracked
from ..measure.scorer import ScoringBatch
from ..models.lens import HookFunction
from .edges import ALL, LOGITS, MLP, READ, WAYS, Clean, Edge, Edges, Stream, feeds_mlp
from .patching import by_row, repeated
from .study import Study


def patched_edges(study: Study, edges: Sequence[Edge]) -> Float[Tensor, "contrasts edges"]:
    """What each edge lets through, exactly."""
    measured = Edges(study, tuple(edges))
    items = torch.zeros(study.scorer.n // 2, len(edges), dtype=torch.float64)
    batches = mine(study.scorer.batches)

    def filled() -> list[Tensor]:
        for batch in tracked(batches, "path patching", len(batches), show=study.progress):
            with torch.no_grad():
                items.index_add_(0, batch.items, let_through(measured, batch))
        return [items]

    summed(filled)
    return items


def let_through(runs: Edges, batch: ScoringBatch) -> Float[Tensor, "batch edges"]:
    """The contrast with a change let through one edge, minus the unedited one, for several edges."""
    clean, edges = runs.clean(batch), runs.edges
    changes = runs.displacements(batch, clean)
    values = torch.zeros(len(batch.tokens), len(edges), dtype=torch.float64)
    for sender in dict.fromkeys(edge[0] for edge in edges):
        own = [place for place, edge in enumerate(edges) if edge[0] == sender]
        z, mlp = _let_in(runs, batch, clean, sender, changes[sender], {edges[place][3] for place in own})
        at_once = max(1, runs.study.batch_size // len(batch.tokens))
        for start in range(0, len(own), at_once):
            some = own[start : start + at_once]
            found = _behind(runs, batch, [edges[place] for place in some], clean, changes[sender], z, mlp)
            values[:, some] = (found - clean.values).T
    return values


def _let_in(
    runs: Edges, batch: ScoringBatch, clean: Clean, sender: Any, change: Stream, ways: set[str]
) -> tuple[dict[str, dict[int, Tensor]], dict[int, Tensor]]:
    """Each head's z where one of its ways sees the change, by way; and what each MLP gives that sees it."""

    def put(x: Tensor) -> HookFunction:
        return lambda _: x

    pinned = [(runs.lens.point("resid_pre", at), put(x)) for at, x in clean.stream.items() if at < runs.lens.n_layers]
    moved = [
        (runs.lens.point("resid_pre", at), put(clean.stream[at] + x))
        for at, x in change.items()
        if at < runs.lens.n_layers
    ]
    # An MLP must see the change alone, and not what attention makes of it.
    moved += [(runs.lens.point("attn_out", at), put(x)) for at, x in clean.attn.items() if at != sender]
    if feeds_mlp(runs.study) and sender != ALL:
        moved.append((runs.lens.point("attn_out", sender), put(clean.attn[sender] + change[sender + 1])))
    seen = runs.seen(batch, (*WAYS, "z", "mlp_out"), moved)
    z: dict[str, dict[int, Tensor]] = {}
    for way in sorted(ways & set(READ)):
        hooks = [(runs.lens.point(one, at), put(x)) for one in READ[way] for at, x in seen[one].items()]
        z[way] = runs.seen(batch, ("z",), [*pinned, *hooks])["z"]
    return z, seen["mlp_out"]


def _behind(
    runs: Edges,
    batch: ScoringBatch,
    edges: Sequence[Edge],
    clean: Clean,
    change: Stream,
    z: Mapping[str, Mapping[int, Tensor]],
    mlp: Mapping[int, Tensor],
) -> Float[Tensor, "edges batch"]:
    """The contrast with what one receiver makes of a change, for several edges in one pass."""
    n = len(edges)

    def exchanging(places: list[int], source: list[Tensor], heads: list[int] | None) -> HookFunction:
        def hook(x: Tensor) -> Tensor:
            copies = rearrange(x.clone(), "(copy batch) ... -> copy batch ...", copy=n)
            for i, (place, new) in enumerate(zip(places, source, strict=True)):
                if heads is None:
                    copies[place] = new
                else:
                    copies[place, :, :, heads[i]] = new[:, :, heads[i]]
            return rearrange(copies, "copy batch ... -> (copy batch) ...")

        return hook

    hooks = []
    for at in sorted({edge[1] for edge in edges}):
        own = [(place, edge) for place, edge in enumerate(edges) if edge[1] == at]
        for kind in ("z", MLP, LOGITS):
            some = [(p, edge) for p, edge in own if (edge[2] if isinstance(edge[2], str) else "z") == kind]
            if not some:
                continue
            places, ends = [p for p, _ in some], [edge for _, edge in some]
            if kind == "z":
                point, source = runs.lens.point("z", at), [z[edge[3]][at] for edge in ends]
            elif kind == MLP:
                point, source = runs.lens.point("mlp_out", at), [mlp[at]] * len(some)
            else:
                point, source = runs.lens.point("resid_post", at - 1), [clean.stream[at] + change[at]] * len(some)
            hooks.append((point, exchanging(places, source, [e[2] for e in ends] if kind == "z" else None)))
    with torch.no_grad(), runs.lens.hooks(hooks):
        log_probs = runs.study.scorer.batch_log_probs(repeated(batch, n))
    return torch.stack([by_row(batch, one) for one in rearrange(log_probs, "(copy n) -> copy n", copy=n)])
