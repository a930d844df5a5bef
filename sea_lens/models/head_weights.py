"""How strongly the heads of a layer write and read directions of the stream, by weights alone (docs/method.md 8.7).

What a head reads is measured through the model's own modules: in one pass of rows of one token each, the stream in
front of every layer is replaced by basis vectors, all of one length, so that the norms in front divide all of them by
the same number. Queries, keys and values are never kept as matrices. Their products with themselves (d_head × d_head
for each head) and with the wanted directions are summed as the basis goes by.

Whether the sums mean what they should is measured on random streams (`_wrong`): what is read of them must be what is
read of the basis added up, scores must rise with the product of query and key, and what is written must be what the
output weights make of the values.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor

from .lens import HookFunction, Lens
from .readout import attention_bias, head_outputs, probe_norm

WRITE, QUERY, KEY, VALUE = WAYS = ("write", "q", "k", "v")
READ = (QUERY, KEY, VALUE)
SEEN = (*READ, "attn_scores", "z", "attn_out")
# Basis vectors in a pass, and random streams that the sums are checked on.
ROWS, PROBES = 1024, 8
# Relative error up to which sums over the basis mean what they should, and the same in half precision.
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.03
# Bytes of sums of several layers, which one turn over the basis is taken for.
TOGETHER = 2**31


@dataclass(frozen=True)
class HeadWeights:
    """How strongly the heads of one layer write and read some directions.

    Attributes:
        squares: by way, the squared strength of each direction.
        mean_squares: by way, the mean of that over all directions of the stream.
        left_out: by way, why it is not told here.
    """

    squares: dict[str, Float[Tensor, "directions heads"]]
    mean_squares: dict[str, Float[Tensor, " heads"]]
    left_out: dict[str, str]


def head_weights(
    lens: Lens, layers: Sequence[int], directions: Float[Tensor, "directions d_model"]
) -> Iterator[tuple[int, HeadWeights]]:
    """How strongly the heads of each layer write and read each direction.

    Memory: a layer's output weights, and d_head × (d_head + directions) numbers for each head of some layers.
    """
    here = [layer for layer in layers if all(lens.has_site(one, layer) for one in ("resid_pre", *SEEN))]
    for layer in layers:
        if layer not in here:
            yield layer, HeadWeights({}, {}, dict.fromkeys(WAYS, "it has no hook points of queries, keys and values"))
    drawn = torch.randn(PROBES, lens.d_model, generator=torch.Generator().manual_seed(0))
    # As the model will see them.
    probes = drawn.to(lens.dtype).to(lens.double_device, torch.float64)
    wanted = torch.cat([directions.to(probes), probes])
    of_layer = 8 * len(READ) * lens.n_heads * lens.d_head * (lens.d_head + len(wanted))
    together = max(1, TOGETHER // of_layer)
    for start in range(0, len(here), together):
        group = here[start : start + together]
        sums, seen = _summed(lens, group, wanted), _seen(lens, group, probes)
        for layer in group:
            yield layer, _measured(lens, layer, {way: sums[way, layer] for way in READ}, seen[layer], directions)


def written_weight(lens: Lens, layer: int) -> Float[Tensor, "heads d_head d_model"]:
    """W_O by head as it reaches the stream: through the gain of the norm behind attention where there is one."""
    weight = lens.attention_weight(layer).to(lens.double_device, torch.float64)
    if (path := lens.norm_behind("attn_out", layer)) is None:
        return weight
    return probe_norm(lens, path).apply_linearly(weight, torch.ones(1, device=lens.device)).to(weight)


@dataclass(frozen=True)
class _Sums:
    """What one way of a layer makes of the basis of the stream, summed over it.

    Attributes:
        gram: products of what each coordinate of the head reads.
        readings: what is read of the wanted directions.
    """

    gram: Float[Tensor, "heads d_head d_head"]
    readings: Float[Tensor, "wanted heads d_head"]

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(self.gram + other.gram, self.readings + other.readings)

    def for_each(self, heads: int) -> "_Sums":
        """With keys and values that several query heads share once for each."""
        n = heads // len(self.gram)
        return _Sums(
            repeat(self.gram, "heads a b -> (heads n) a b", n=n),
            repeat(self.readings, "wanted heads a -> wanted (heads n) a", n=n),
        )

    def scaled(self, gain: Float[Tensor, "heads d_head"]) -> "_Sums":
        """Behind a gain on what is read."""
        outer = einsum(gain, gain, "heads a, heads b -> heads a b")
        return _Sums(self.gram * outer, self.readings * gain)


def _summed(lens: Lens, layers: Sequence[int], wanted: Float[Tensor, "wanted d_model"]) -> dict[Any, _Sums]:
    """Sums over the basis by way and layer, for a stream whose entries have the root mean square 1."""
    points = {lens.point(way, layer): (way, layer) for layer in layers for way in READ}
    found: dict[Any, _Sums] = {}
    length = math.sqrt(lens.d_model)
    for start in range(0, lens.d_model, ROWS):
        stop = min(start + ROWS, lens.d_model)

        def add(x: Tensor, name: str, start: int = start, stop: int = stop) -> Tensor:
            values = rearrange(x, "rows 1 heads d_head -> rows heads d_head").to(wanted)
            # The first row is what a stream of zero gives: biases.
            read = (values[1:] - values[:1]) / length
            gram = einsum(read, read, "rows heads a, rows heads b -> heads a b")
            readings = einsum(wanted[:, start:stop], read, "wanted rows, rows heads a -> wanted heads a")
            one = _Sums(gram, readings)
            found[points[name]] = found[points[name]] + one if start else one
            return x[:1]

        rows = torch.zeros(1 + stop - start, lens.d_model)
        rows[1:, start:stop] = length * torch.eye(stop - start)
        with torch.no_grad():
            lens.read(*_one_token(len(rows)), list(points), _replacing(lens, layers, rows), add)
    return found


def _one_token(rows: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(rows, 1, dtype=torch.int64), torch.ones(rows, 1, dtype=torch.int64)


def _replacing(
    lens: Lens, layers: Sequence[int], rows: Float[Tensor, "rows d_model"]
) -> list[tuple[str, HookFunction]]:
    """Hooks that put these in the place of the stream in front of each layer."""
    return [(lens.point("resid_pre", layer), lambda x: rows[:, None].to(x)) for layer in layers]


def _seen(lens: Lens, layers: Sequence[int], probes: Float[Tensor, "probes d_model"]) -> dict[int, dict[str, Tensor]]:
    """What each layer makes of a stream of zero, in the first row, and of the probes; by layer and kind."""
    found: dict[int, dict[str, Tensor]] = {layer: {} for layer in layers}

    def saving(kind: str, layer: int) -> HookFunction:
        def hook(x: Tensor) -> None:
            found[layer][kind] = x.to(probes)

        return hook

    rows = torch.cat([torch.zeros_like(probes[:1]), probes])
    hooks = [(lens.point(kind, layer), saving(kind, layer)) for layer in layers for kind in SEEN]
    with torch.no_grad(), lens.hooks(_replacing(lens, layers, rows)), lens.hooks(hooks, proven=False):
        lens.forward(*_one_token(len(rows)))
    return found


def _measured(
    lens: Lens,
    layer: int,
    sums: Mapping[str, _Sums],
    seen: Mapping[str, Tensor],
    directions: Float[Tensor, "directions d_model"],
) -> HeadWeights:
    """The strengths of one layer."""
    n, heads = len(directions), lens.n_heads
    norms = {way: _norm_behind(lens, layer, way, sums[way].gram) for way in (QUERY, KEY)}
    output = written_weight(lens, layer)
    left_out = _wrong(lens, layer, sums, seen, norms)
    scaled = [sums[way] if (norm := norms.get(way)) is None else norm.applied(sums[way]) for way in READ]
    query, key, value = (one.for_each(heads) for one in scaled)
    written = _Sums(
        einsum(output, output, "heads a d, heads b d -> heads a b"),
        einsum(directions.to(output), output, "n d, heads a d -> n heads a"),
    )
    pairs = {WRITE: (written, value), QUERY: (query, key), KEY: (key, query), VALUE: (value, written)}
    squares, means = {}, {}
    for way, (one, other) in pairs.items():
        if way not in left_out:
            through = einsum(one.readings[:n], other.gram, "n heads a, heads a b -> n heads b")
            squares[way] = reduce(through * one.readings[:n], "n heads a -> n heads", "sum").clamp_min(0).cpu()
            means[way] = (reduce(one.gram * other.gram, "heads a b -> heads", "sum") / lens.d_model).cpu()
    return HeadWeights(squares, means, left_out)


@dataclass(frozen=True)
class _Norm:
    """A norm of queries or keys between their hook point and the scores (Qwen 3, OLMo 2, Gemma 3).

    Attributes:
        gain: of each coordinate.
        whole: whether all heads are divided by one number, and not each by its own.
    """

    gain: Float[Tensor, "heads d_head"]
    whole: bool

    def applied(self, sums: _Sums) -> _Sums:
        """Behind the norm, which divides by what it divides by for random streams on average."""
        squares = reduce(torch.diagonal(sums.gram, dim1=1, dim2=2), "heads a -> heads 1", "mean")
        return sums.scaled(self.gain / self._size(squares))

    def __call__(self, x: Float[Tensor, "rows heads d_head"]) -> Float[Tensor, "rows heads d_head"]:
        return x / self._size(reduce(x.square(), "rows heads a -> rows heads 1", "mean")) * self.gain

    def _size(self, squares: Float[Tensor, "*rows heads 1"]) -> Float[Tensor, "*rows _ 1"]:
        return (squares.mean(-2, keepdim=True) if self.whole else squares).sqrt().clamp_min(1e-300)


def _norm_behind(lens: Lens, layer: int, way: str, gram: Float[Tensor, "heads d_head d_head"]) -> _Norm | None:
    """The norm of queries or keys, None where there is none, or none that is known by its name."""
    heads, d_head, _ = gram.shape
    module: Any = getattr(lens.points.blocks[layer].attn, f"{way}_norm", None)
    weight = next(iter(module.parameters()), None) if isinstance(module, torch.nn.Module) else None
    if weight is None or weight.numel() not in (d_head, heads * d_head):
        return None
    width = weight.numel()
    alternating = 1.0 - 2.0 * (torch.arange(width, device=lens.layer_device(layer)) % 2)
    with torch.no_grad(), lens.weights(layer):
        one, other = (module(x.to(lens.dtype)[None, None])[0, 0].to(gram) for x in (alternating, -alternating))
    gain = (one - other) / 2 * alternating.to(gram)
    return _Norm(
        repeat(gain, "a -> heads a", heads=heads) if width == d_head else gain.reshape(heads, d_head), width != d_head
    )


def _wrong(
    lens: Lens, layer: int, sums: Mapping[str, _Sums], seen: Mapping[str, Tensor], norms: Mapping[str, _Norm | None]
) -> dict[str, str]:
    """By way, why sums over the basis do not tell what the heads do."""
    if missing := [kind for kind in SEEN if kind not in seen]:
        return dict.fromkeys(WAYS, f"its hook points of {', '.join(missing)} are never reached")
    # NaN is within no tolerance.
    allowed = TOLERANCE if lens.dtype.itemsize >= 4 else HALF_TOLERANCE
    found: dict[str, str] = {}
    for way in READ:
        direct = seen[way][1:, 0] - seen[way][:1, 0]
        off = _off(direct.flatten(1), sums[way].readings[-PROBES:].flatten(1))
        if not off <= allowed:
            found[way] = f"what is read of a sum is not the sum of what is read (off by {off:.1e})"
    behind = [seen[way][1:, 0] if norm is None else norm(seen[way][1:, 0]) for way, norm in norms.items()]
    query, key = (_each(one, lens.n_heads) for one in behind)
    off = _falling(seen["attn_scores"][1:, :, 0, 0], reduce(query * key, "rows heads a -> rows heads", "sum"))
    if not off <= allowed:
        found |= dict.fromkeys((QUERY, KEY), f"scores do not rise with the product of query and key (by {off:.1e})")
    z = seen["z"][1:, 0]
    off = _off(z, _each(seen[VALUE][1:, 0], lens.n_heads))
    norm = None if (path := lens.norm_behind("attn_out", layer)) is None else probe_norm(lens, path)
    written = reduce(head_outputs(lens, layer, z.to(lens.device)), "rows heads d -> rows d", "sum")
    written, output = written + attention_bias(lens, layer), seen["attn_out"][1:, 0].to(written)
    if norm is not None:
        written, output = norm.apply_linearly(written, torch.ones_like(written[:, :1])), output - norm.bias
    off = torch.tensor([off, _off(output, written)]).max().item()
    if not off <= allowed:
        found |= dict.fromkeys(
            (WRITE, VALUE), f"what is written is not what the weights make of values (off by {off:.1e})"
        )
    if VALUE in found:
        found[WRITE] = found[VALUE]
    if found.keys() & {QUERY, KEY}:
        # Each is measured by what the other makes of it.
        found = {QUERY: found.get(KEY, ""), KEY: found.get(QUERY, "")} | found
    return found


def _each(x: Float[Tensor, "rows some d_head"], heads: int) -> Float[Tensor, "rows heads d_head"]:
    return repeat(x, "rows some a -> rows (some n) a", n=heads // x.shape[1])


def _off(found: Float[Tensor, "*batch n"], expected: Float[Tensor, "*batch n"]) -> float:
    """How far vectors are from multiples of others, relative to their length; the largest."""
    squares = reduce(expected.square(), "... n -> ... 1", "sum").clamp_min(1e-300)
    multiple = reduce(found * expected, "... n -> ... 1", "sum") / squares
    rest = (found - multiple * expected).norm(dim=-1)
    return (rest / found.norm(dim=-1).clamp_min(1e-300)).max().item()


def _falling(found: Float[Tensor, "rows heads"], expected: Float[Tensor, "rows heads"]) -> float:
    """How far numbers of one head fall where others rise, relative to their range.

    A soft cap of scores changes no order, and neither does what is added for the place of a token.
    """
    ordered = found.gather(0, expected.argsort(dim=0, stable=True))
    fall = (ordered.cummax(0).values - ordered).max()
    return (fall / (ordered.amax(0) - ordered.amin(0)).max().clamp_min(1e-300)).item()
