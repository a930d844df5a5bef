"""What the check of a model measures: a few short passes, on texts that cover one question each."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..errors import UnsupportedModelError
from .lens import Lens
from .predictions import Predictions, predict
from .processing import unembedding_centred
from .reference import Probe, Reference
from .sites import SITES, Site
from .vocabulary_parts import vocabulary_parts

_PUSH = 10.0


def whole(lens: Lens, probe: Probe) -> Predictions:
    """The probe, read whole."""
    with torch.no_grad():
        return predict(lens, probe.tokens, probe.mask)


@dataclass(frozen=True)
class Compared:
    """All logits of the probe, looked at a part of the vocabulary at a time.

    Attributes:
        bad: how many are NaN or infinite; minus infinity is a number, with which some models leave tokens out.
        deviation: largest difference from the reference's logits, relative to the largest of these; 0 without one.
    """

    bad: int
    deviation: float

    @staticmethod
    def of(lens: Lens, read: Predictions, probe: Probe, reference: Reference | None) -> "Compared":
        """Look at what a model says of the probe."""
        row, position = (at.flatten() for at in probe.mask.bool().nonzero().split(1, dim=1))
        # Centring moves all logits of a position by one number, which no probability shows.
        centred = reference is not None and unembedding_centred(lens.model)
        means = _means(read.parts(row, position)) if centred else None
        expected_means = _means(_parts_of(reference, row, position)) if centred and reference is not None else None
        bad, worst, scale = 0, 0.0, torch.finfo(torch.float32).tiny
        with torch.no_grad():
            for start, stop, part in read.parts(row, position):
                given = part.cpu()
                bad += int((~(given < float("inf"))).sum())
                if reference is None or start >= reference.logits.shape[-1]:
                    continue
                expected = reference.logits[row, position, start:stop].to(given.dtype)
                given = given[:, : expected.shape[1]]
                if means is not None and expected_means is not None:
                    given, expected = given - means, expected - expected_means
                worst = max(worst, largest(torch.where(given == expected, 0.0, (given - expected).abs())))
                scale = max(scale, largest(expected[expected.isfinite()].abs()))
        return Compared(bad, worst / scale)


def _parts_of(reference: Reference, row: Tensor, position: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    d_vocab = reference.logits.shape[-1]
    for start, stop in vocabulary_parts(4 * len(row), d_vocab, reference.logits.device):
        yield start, stop, reference.logits[row, position, start:stop].float()


def _means(parts: Iterable[tuple[int, int, Tensor]]) -> Float[Tensor, "n 1"]:
    """Means over the vocabulary, on the CPU."""
    with torch.no_grad():
        sums = [(part.double().sum(-1).cpu(), part.shape[1]) for *_, part in parts]
    total = torch.stack([one for one, _ in sums]).sum(0) / sum(count for _, count in sums)
    return rearrange(total.float(), "n -> n 1")


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
            read = predict(lens, tokens, torch.ones_like(tokens))
            rows = torch.arange(len(tokens))
            away, size = torch.zeros(len(tokens)), torch.zeros(())
            for _, _, logits in read.parts(rows, torch.zeros_like(rows)):
                # A NaN stays one.
                away = torch.maximum(away, (logits - logits[0]).abs().amax(-1).float().cpu())
                size = torch.maximum(size, logits[0].abs().max().float().cpu())
        limit = max(4 * away[-1].item(), 2 * torch.finfo(lens.dtype).eps * size.item())
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
