"""What the check of a model measures: a few short passes, on texts that cover one question each."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UnsupportedModelError
from .cache import Past
from .lens import Handle, Lens
from .reference import Probe
from .sites import SITES, Site

_PUSH = 10.0


@contextlib.contextmanager
def _hooked(lens: Lens, functions: list[tuple[str, Callable[[Tensor], Tensor | None]]]) -> Iterator[None]:
    """Hooks that nobody asks to have run: whether they do is what is measured here."""
    points = lens.model.hook_dict
    with contextlib.ExitStack() as stack:
        for name, function in functions:
            point = points[name]
            point.add_hook(lambda x, hook, function=function: function(x), is_permanent=True)
            handle = Handle(point, point.fwd_hooks[-1])
            # As `Lens.add_hook` marks its own.
            handle.installed._sea_lens = True
            stack.callback(handle.remove)
        yield


def whole(lens: Lens, probe: Probe) -> tuple[Float[Tensor, "2 pos vocab"], dict[str, list[int]]]:
    """Logits of the probe, on the CPU, and how often the hook of each site was called in each layer.

    A layer that has no hook point at a site has -1.
    """
    counts = {site: [-1] * lens.n_layers for site in SITES}
    functions = []
    for site in SITES:
        for layer in range(lens.n_layers):
            # A model without the point says so where the site is used.
            with contextlib.suppress(UnsupportedModelError):
                functions.append((lens.point(site, layer), _counter(counts[site], layer)))
                counts[site][layer] = 0
    with torch.no_grad(), _hooked(lens, functions):
        logits = lens.forward(probe.tokens, probe.mask)
    return logits.detach().cpu(), counts


def _counter(counts: list[int], layer: int) -> Callable[[Tensor], None]:
    def count(x: Tensor) -> None:
        counts[layer] += 1

    return count


def without_effect(lens: Lens, probe: Probe, counts: dict[str, list[int]]) -> dict[str, list[int]]:
    """Layers at which what a site's hook returns changes no logit, by site.

    One pass over texts of one token, all the same: each row is changed at one site of one layer alone, and two are
    left as they are to tell how far rows differ by rounding.
    """
    places = [(site, layer) for site in SITES for layer in range(lens.n_layers) if counts[site][layer] > 0]
    if not places:
        return {}
    generator = torch.Generator().manual_seed(0)
    functions = []
    for row, (site, layer) in enumerate(places, start=1):
        width = Site.of(site).shape(lens)[1]
        push = torch.randn(width, generator=generator)
        functions.append((lens.point(site, layer), _pusher(row, push)))
    tokens = probe.tokens[:1, :1].expand(len(places) + 2, 1).contiguous()
    with torch.no_grad(), _hooked(lens, functions):
        logits = lens.forward(tokens, torch.ones_like(tokens))[:, 0].float()
    away = (logits - logits[0]).abs().amax(-1)
    limit = max(4 * away[-1].item(), 2 * torch.finfo(lens.dtype).eps * logits[0].abs().max().item())
    found: dict[str, list[int]] = {}
    for row, (site, layer) in enumerate(places, start=1):
        # Too large a push ends in NaN, which is an effect as well.
        if away[row] <= limit and not (site == "z" and not lens.attention_weight(layer).any()):
            found.setdefault(site, []).append(layer)
    return found


def _pusher(row: int, push: Tensor) -> Callable[[Tensor], Tensor]:
    def pushed(x: Tensor) -> Tensor:
        changed = x.clone()
        size = x[row].float().square().mean().sqrt() + 1.0
        changed[row] = (-_PUSH * x[row].float() + size * push.to(x.device)).to(x.dtype)
        return changed

    return pushed


def cached(lens: Lens, probe: Probe, logits: Float[Tensor, "2 pos vocab"]) -> tuple[float, float]:
    """Largest differences between logits read with a cache and those read whole, in rows without and with padding.

    Both rows begin like the probe's first text, the second shorter, so padded on the left. One pass reads these, one
    goes on by a token (5 + 1), and one by three tokens (5 + 3; 3 + 3 behind padding; the same five followed by what
    the second text goes on with).
    """
    first = min(probe.shared, logits.shape[1] // 2)
    short = max(1, first - 2)
    more = min(3, int(probe.mask[1].sum()) - first)
    a, b = probe.tokens
    begin = torch.stack([a[:first], torch.cat([torch.zeros(first - short, dtype=a.dtype), a[:short]])])
    mask = torch.ones_like(begin)
    mask[1, : first - short] = 0
    read, past = Past(lens, 2).read(begin, mask)
    one, _ = past.read(torch.stack([a[first : first + 1], a[short : short + 1]]))
    continuations = torch.stack([a[first : first + more], b[first : first + more], a[short : short + more]])
    three, _ = past.select([0, 0, 1]).read(continuations)
    end = first + more
    plain = [
        (read[0], logits[0, :first]),
        (one[0], logits[0, first : first + 1]),
        (three[0], logits[0, first:end]),
        (three[1], logits[1, first:end]),
    ]
    padded = [
        (read[1, first - short :], logits[0, :short]),
        (one[1], logits[0, short : short + 1]),
        (three[2], logits[0, short : short + more]),
    ]
    return tuple(max(_distance(x.cpu(), y) for x, y in pairs) for pairs in (plain, padded))  # type: ignore[return-value]


def _distance(x: Tensor, y: Tensor) -> float:
    return largest((x.float() - y.float()).abs())


def largest(distances: Tensor) -> float:
    """The largest of some distances, infinite where one is no number."""
    return distances.nan_to_num(nan=float("inf"), posinf=float("inf")).max().item()
