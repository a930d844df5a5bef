"""What the check of a model measures: a few short passes, on texts that cover one question each."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UnsupportedModelError
from .lens import Lens
from .reference import Probe
from .sites import SITES, Site

_PUSH = 10.0


def whole(lens: Lens, probe: Probe) -> Float[Tensor, "2 pos vocab"]:
    """Logits of the probe, on the CPU."""
    with torch.no_grad():
        return lens.forward(probe.tokens, probe.mask).detach().cpu()


@dataclass(frozen=True)
class Acting:
    """What hooks do in a pass.

    Attributes:
        calls: of each site's hook, by layer; -1 where a layer has no hook point of the site.
        silent: layers at which what a site's hook returns changes no logit.
    """

    calls: dict[str, list[int]]
    silent: dict[str, list[int]]

    @staticmethod
    def of(lens: Lens, probe: Probe) -> "Acting":
        """Run one pass over texts of one token, all the same.

        Each row is changed at one site of one layer alone, and two are left as they are to tell how far rows differ by
        rounding.
        """
        calls = {site: [-1] * lens.n_layers for site in SITES}
        generator = torch.Generator().manual_seed(0)
        places, functions = [], []
        for site in SITES:
            for layer in range(lens.n_layers):
                # A model without the point says so where the site is used.
                with contextlib.suppress(UnsupportedModelError):
                    point, width = lens.point(site, layer), Site.of(site).shape(lens)[1]
                    calls[site][layer] = 0
                    places.append((site, layer))
                    push = torch.randn(width, generator=generator)
                    functions.append((point, _pusher(len(places), push, calls[site], layer)))
        tokens = probe.tokens[:1, :1].expand(len(places) + 2, 1).contiguous()
        # Whether hooks run is what is measured, so that no pass is refused for one that does not.
        with torch.no_grad(), lens.hooks(functions, proven=False):
            logits = lens.forward(tokens, torch.ones_like(tokens))[:, 0].float()
        away = (logits - logits[0]).abs().amax(-1)
        limit = max(4 * away[-1].item(), 2 * torch.finfo(lens.dtype).eps * logits[0].abs().max().item())
        silent: dict[str, list[int]] = {}
        # Too large a push ends in NaN, which is an effect as well.
        for row in ((away[1:-1] <= limit).nonzero().flatten() + 1).tolist():
            site, layer = places[row - 1]
            if calls[site][layer] and not (site == "z" and not lens.attention_weight(layer).any()):
                silent.setdefault(site, []).append(layer)
        return Acting(calls, silent)


def _pusher(row: int, push: Tensor, calls: list[int], layer: int) -> Callable[[Tensor], Tensor]:
    def pushed(x: Tensor) -> Tensor:
        calls[layer] += 1
        changed = x.clone()
        changed[row] = torch.add(push.to(x), x[row], alpha=-_PUSH)
        return changed

    return pushed


def largest(distances: Tensor) -> float:
    """The largest of some distances, infinite where one is no number, and 0 where there are none."""
    if not distances.numel():
        return 0.0
    return distances.nan_to_num(nan=float("inf"), posinf=float("inf")).max().item()
