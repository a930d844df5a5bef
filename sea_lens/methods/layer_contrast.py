"""DoLa: decoding by contrasting layers (Chuang et al. 2023, arXiv 2309.03883; docs/method.md 5.4).

Let p be the model's next-token distribution and q_l what the residual stream behind layer l already says, read off
through the final norm and the unembedding, with the model's own scale and soft cap. At each position the premature
layer M is the candidate whose q_l differs most from p in Jensen-Shannon divergence, and

    new logits = log p − α_M log q_M        for tokens with p ≥ relative_top · max p, −∞ for all others

The difference is what the layers behind M added. Nothing is fitted and no activation changes.

Two things differ from the authors' code, both towards the paper. Their code averages the divergence over the batch, so
that rows depend on each other, and takes the divergences of the mixture from p and q_l instead of those of p and q_l
from the mixture. The authors also offer the embedding as a candidate ("layer 0"); their layer j is layer j − 1 here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, SupportsFloat

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_number
from .._support.saturation import widened
from ..edits.base import Edit
from ..edits.where import Defaults, LayerChoice, Where, choose_layers
from ..errors import InputError, UnsupportedModelError
from ..models.hooks import HookFunction
from ..models.lens import Lens
from ..models.logit_hooks import logits_hook
from ..models.readout import EarlyExit
from ..models.standing import Change

Residuals = Float[Tensor, "batch read d_model"]
Logits = Float[Tensor, "batch pos d_vocab"]


@dataclass(frozen=True)
class DoLa(Edit):
    """Contrast with a premature layer: made by `dola`, put into a model like any edit.

    The layers of `applied` are the candidates, and a layer's strength is α where it is the premature one; a layer of
    strength 0 is no candidate, and without candidates the model is as it was. So layers can be played against each
    other ("shapley", "leave_one_out", "only_one"), but there is no activation for the other analyses to look at.

    Attributes:
        candidates: the layers to choose from, ascending.
        model_layers: layers of the model.
        relative_top: share of the largest probability that a token must have to be kept; 0 keeps all.
    """

    combines: ClassVar[tuple[str, ...]] = ("contrast",)

    candidates: tuple[int, ...]
    model_layers: int
    relative_top: float = 0.1
    site: str = field(default="logits", init=False)
    defaults: Defaults = field(default=Defaults(), kw_only=True, repr=False)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.candidates

    @property
    def n_layers(self) -> int:
        return self.model_layers

    def check_strengths(self, model: Any, where: Where, *, scoring: bool) -> None:
        for layer, alpha in where.strengths.items():
            if isinstance(alpha, Tensor) and alpha.ndim > 0:
                raise InputError(
                    f"strength of shape {tuple(alpha.shape)} for layer {layer}: DoLa takes one number for each layer"
                )
        if scoring and self.relative_top > 0:
            raise InputError(
                f"with relative_top {self.relative_top:g} most tokens have no probability, so completions cannot be "
                f"scored: expected DoLa with relative_top=0"
            )

    def changes(self, model: Any, where: Where) -> Sequence[Change]:
        strengths = {layer: alpha for layer, alpha in where.strengths.items() if alpha != 0}
        if not strengths:
            return []
        lens = Lens.of(model)
        readout = EarlyExit.of(lens)
        streams: dict[int, Tensor] = {}

        def saver(layer: int) -> HookFunction:
            def save(x: Tensor) -> None:
                streams[layer] = x

            return save

        def begin(start: int) -> None:
            # A pass that starts before the candidates runs all of them, so that no stream is left from another pass.
            if start > min(strengths):
                raise InputError(f"DoLa contrasts layers {list(strengths)}: expected a pass that starts before them")

        def change(logits: Logits) -> Logits:
            changed = contrasted(logits, streams, strengths, readout, self.relative_top)
            streams.clear()
            return changed

        points = {layer: lens.point("resid_post", layer) for layer in strengths}
        saving = [lens.hook(point, saver(layer)) for layer, point in points.items()]
        return [*saving, logits_hook(lens, change, begin)]


def dola(model: Any, layers: LayerChoice = "all", relative_top: SupportsFloat = 0.1) -> DoLa:
    """DoLa for a model.

    Args:
        model: a TransformerLens model.
        layers: the candidate layers, of all but the last: "all", "first-L", "last-L", or a list. The paper takes every
            other layer of one half of the model: the lower one for long answers, the upper one for short ones.
        relative_top: β, the share of the largest probability below which a token is ruled out. The paper's 0.1 is for
            generation; to score given completions, as in multiple choice, switch it off with 0.

    Returns:
        The edit; nothing is fitted.

    Raises:
        InputError: unknown layers, or a relative_top outside 0 to 1.
        UnsupportedModelError: a model of one layer, or one whose logits are not the final norm and unembedding of its
            residual stream; says by how much they differ.
    """
    lens = Lens.of(model)
    relative_top = as_number(relative_top, "relative_top")
    if not 0 <= relative_top <= 1:
        raise InputError(f"relative_top {relative_top:g} is outside 0 to 1")
    if lens.n_layers < 2:
        raise UnsupportedModelError(f"model {lens.name!r} has no layer before its last to contrast with")
    chosen = choose_layers(layers, range(lens.n_layers - 1))
    _check_readout(lens)
    return DoLa(chosen, lens.n_layers, relative_top)


def _check_readout(lens: Lens) -> None:
    """Refuse a model whose last layer's residual stream, read out early, does not give its logits."""
    tokens = torch.arange(min(4, lens.d_vocab))[None]
    seen: list[Tensor] = []
    last = lens.point("resid_post", lens.n_layers - 1)
    with torch.no_grad(), lens.hooks([(last, lambda x: seen.append(x))]):
        logits = lens.forward(tokens, torch.ones_like(tokens)).float()
        error = (EarlyExit.of(lens)(seen[0]) - logits).abs().max().item()
    # Logits may be scaled to any size.
    allowed = (1e-3 if lens.dtype.itemsize >= 4 else 0.05) * logits.abs().max().item()
    if not error <= allowed:
        raise UnsupportedModelError(
            f"model {lens.name!r}: the last layer read out differs from the logits by {error:.2e}, so earlier layers "
            f"cannot be read out either"
        )


def contrasted(
    logits: Logits,
    streams: Mapping[int, Residuals],
    strengths: Mapping[int, float | Tensor],
    readout: EarlyExit,
    relative_top: float,
) -> Logits:
    """DoLa's logits, in the dtype of the model's.

    Args:
        logits: the model's own.
        streams: the residual stream behind each candidate layer, ascending; where there are logits of the last
            positions only, those positions are taken.
        strengths: α of each candidate.
        readout: gives a residual stream's logits.
        relative_top: see `dola`.
    """
    final = widened(logits).log_softmax(-1)
    furthest: Tensor | None = None
    penalty = torch.zeros_like(final)
    # One candidate after the other, so that memory does not grow with their number.
    for layer, stream in streams.items():
        premature = readout(stream[:, -logits.shape[1] :]).to(final).log_softmax(-1)
        divergence = jensen_shannon(final, premature)
        # The first candidate is taken everywhere, a later one only where it differs more: the lowest of equal ones.
        further = torch.ones_like(divergence, dtype=torch.bool) if furthest is None else divergence > furthest
        furthest = divergence if furthest is None else torch.where(further, divergence, furthest)
        penalty = torch.where(rearrange(further, "... -> ... 1"), strengths[layer] * premature, penalty)
    # Where the model itself rules a token out, so does the contrast.
    changed = torch.where(final.isneginf(), final, final - penalty)
    if relative_top > 0:
        least = reduce(final, "... d_vocab -> ... 1", "max") + math.log(relative_top)
        changed = torch.where(final >= least, changed, -torch.inf)
    return changed.to(logits.dtype)


def jensen_shannon(p: Float[Tensor, "*batch d"], q: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """Jensen-Shannon divergence of two distributions in nats, given their logarithms; between 0 and log 2."""
    middle = torch.logaddexp(p, q) - math.log(2)

    def from_middle(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        # What has no probability contributes nothing.
        terms = torch.where(x.isneginf(), 0.0, x.exp() * (x - middle))
        return reduce(terms, "... d -> ...", "sum")

    return (from_middle(p) + from_middle(q)) / 2
