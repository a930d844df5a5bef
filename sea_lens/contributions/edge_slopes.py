"""First-order estimates of all edges from one backward pass (docs/method.md 9.7)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from ..measure.scorer import ScoringBatch
from .edges import ALL, IN, LOGITS, MLP, READ, WAYS, Clean, Edge, Edges, Stream, feeds_mlp, is_parallel


def first_order(
    edges: Edges, batch: ScoringBatch
) -> tuple[Float[Tensor, "batch edges"], Float[Tensor, "batch senders"]]:
    """⟨∂f/∂(what is read), change⟩ of every edge from one backward pass, and of each sender's displacement.

    For an edited layer the edges add up to the latter, since the stream is read by nothing else.
    """
    kinds = ("resid_pre", *WAYS, "z", "attn_out", "mlp_out")
    with torch.enable_grad():
        seen = edges.seen(batch, kinds, (), recorded=True)
    total = seen.pop("total")
    streams, n = edges.streams(seen), edges.lens.n_layers
    ends = [*seen["z"].values(), *seen["mlp_out"].values(), *streams.values(), *seen["attn_out"].values()]
    slopes = iter(gradients_of_graph(total, ends))
    of_z, of_mlp, of_stream, of_attn = (
        {layer: next(slopes) for layer in of} for of in (seen["z"], seen["mlp_out"], streams, seen["attn_out"])
    )
    parts = {"stream": streams, "attn": seen["attn_out"], "mlp": seen["mlp_out"], "z": seen["z"]}
    detached = {name: {layer: x.detach() for layer, x in of.items()} for name, of in parts.items()}
    clean = Clean(seen["values"], **detached)
    changes = edges.displacements(batch, clean)
    found: dict[Edge, Tensor] = {}
    for layer in range(n):
        sent = {sender: change[layer] for sender, change in changes.items() if layer in change}
        found |= _into_heads(layer, seen, streams[layer], of_z[layer], sent) if sent else {}
        if layer in of_mlp:
            read_at = streams[layer] if is_parallel(edges.lens) else seen["attn_out"][layer]
            (slope,) = torch.autograd.grad(seen["mlp_out"][layer], read_at, of_mlp[layer], retain_graph=True)
            for sender, change in _read_by_mlp(edges, layer, changes).items():
                found[sender, layer, MLP, IN] = _product(slope, change)
    for sender, change in changes.items():
        if sender != ALL:
            found[sender, n, LOGITS, IN] = _product(of_stream[n], change[n])
    for sender, layer, head, way in edges.edges:
        if way in READ and way not in WAYS:
            found[sender, layer, head, way] = torch.stack([found[sender, layer, head, w] for w in READ[way]]).sum(0)
    values = torch.stack([found[edge].detach().double().cpu() for edge in edges.edges], 1)
    whole = [
        torch.zeros(len(values), dtype=torch.float64)
        if sender == ALL
        else _product(of_attn[sender] if feeds_mlp(edges.study) else of_stream[sender + 1], changes[sender][sender + 1])
        .double()
        .cpu()
        for sender in edges.senders
    ]
    return values, torch.stack(whole, 1)


def _into_heads(
    layer: int,
    seen: Mapping[str, Any],
    stream: Float[Tensor, "batch pos d_model"],
    of_z: Float[Tensor, "batch pos heads d_head"],
    sent: Mapping[Any, Float[Tensor, "batch pos d_model"]],
) -> dict[Edge, Float[Tensor, " batch"]]:
    """Estimates of the edges into the heads of a layer, from the slope of each head's z and what each sender sends."""
    found = {}
    for way in WAYS:
        x, z = seen[way][layer], seen["z"][layer]
        steps = list(_forward_derivative(x, stream, list(sent.values())))
        # Query heads that share keys and values: one of each group at a time.
        group = z.shape[2] // x.shape[2]
        for member in range(group):
            only = torch.zeros(z.shape[2], device=z.device, dtype=z.dtype)
            only[member::group] = 1
            (slope,) = torch.autograd.grad(z, x, of_z * rearrange(only, "head -> head 1"), retain_graph=True)
            for sender, step in zip(sent, steps, strict=True):
                read = einsum(slope.float(), step.float(), "batch pos head d, batch pos head d -> batch head")
                found |= {(sender, layer, i * group + member, way): one for i, one in enumerate(read.unbind(1))}
    return found


def _read_by_mlp(edges: Edges, layer: int, changes: Mapping[Any, Stream]) -> dict[Any, Tensor]:
    """What each sender changes of the stream that a layer's MLP reads."""
    found = {sender: change[layer] for sender, change in changes.items() if sender != ALL and layer in change}
    if layer in changes and feeds_mlp(edges.study):
        found[layer] = changes[layer][layer + 1]
    return found


def gradients_of_graph(value: Float[Tensor, ""], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a number whose graph is needed again; zeros where it does not depend on a tensor."""
    found = torch.autograd.grad(value, tensors, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if slope is None else slope for slope, x in zip(found, tensors, strict=True)]


def _forward_derivative(
    x: Float[Tensor, "batch pos heads d"],
    stream: Float[Tensor, "batch pos d_model"],
    steps: Sequence[Float[Tensor, "batch pos d_model"]],
) -> Iterator[Float[Tensor, "batch pos heads d"]]:
    """J·step for each step, J the derivative of x by the stream: the backward pass is linear in what goes into it."""
    into = torch.zeros_like(x, requires_grad=True)
    (pulled,) = torch.autograd.grad(x, stream, into, create_graph=True)
    for step in steps:
        (found,) = torch.autograd.grad(pulled, into, step.to(pulled), retain_graph=True)
        yield found


def _product(slope: Tensor, change: Tensor) -> Float[Tensor, " batch"]:
    return einsum(slope.float(), change.float(), "batch pos d, batch pos d -> batch").detach()
