"""What the check of a model measures: a few short passes, on texts that cover one question each."""

import contextlib
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UnsupportedModelError
from .lens import Lens
from .reference import Probe
from .sites import SITES, Site

_PUSH = 10.0


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
    # Whether hooks run is what is measured, so that no pass is refused for one that does not.
    with torch.no_grad(), lens.hooks(functions, proven=False):
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
    with torch.no_grad(), lens.hooks(functions, proven=False):
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
        changed[row] = torch.add(push.to(x), x[row], alpha=-_PUSH)
        return changed

    return pushed


def largest(distances: Tensor) -> float:
    """The largest of some distances, infinite where one is no number."""
    return distances.nan_to_num(nan=float("inf"), posinf=float("inf")).max().item()
