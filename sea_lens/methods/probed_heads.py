"""Inference-time intervention (ITI; Li et al. 2023, arXiv 2306.03341; docs/method.md 5.2): steering of a few heads.

One linear probe for each head learns to tell the positive from the negative texts by the head's last-token z. The K
heads whose probes do best on held-out demonstrations are steered: z becomes z + α σ θ, where θ is the head's unit
direction from negative to positive and σ the standard deviation of its activations along θ.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, SupportsFloat, SupportsIndex

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer, as_number
from .._support.progress import tracked
from .._support.versions import versions
from ..edits.in_model import warn_of_installed
from ..edits.saved import keyed_by_layer, require
from ..edits.where import Defaults
from ..errors import ActivationError, InputError
from ..models.lens import Lens
from ..models.reading import Reading
from ..models.sites import Site
from ..spectral.covariance import refuse_non_finite
from ..texts.demonstrations import Demonstrations
from ..texts.items import Demonstration
from .steering import STEERED, Steering, vectors_of

DIRECTIONS = ("mass_mean", "probe")


@dataclass(frozen=True, eq=False)
class ITI(Steering):
    """Inference-time intervention: made by `iti`, applied like any edit at site `z`.

    `vectors` holds σθ of the chosen heads and zeros for the others of their layers. The strength is the paper's α; as
    everywhere it is 1 by default, which is one standard deviation: the paper chooses 15. As in the paper the edit acts
    at the last token of every decoding step, the prompt's last one first, unless `positions` or `with_defaults` says
    otherwise (docs/method.md 5.2).

    Attributes:
        heads: the chosen heads as (layer, head), the best probe first.
        accuracies: share of the held-out texts that each head's probe tells right.
    """

    kind: ClassVar[str] = "ITI edit"

    heads: tuple[tuple[int, int], ...] = ()
    accuracies: Float[Tensor, "n_layers n_heads"] | None = None

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | ({} if self.accuracies is None else {"accuracies": self.accuracies})

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"heads": [list(head) for head in self.heads]}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> "ITI":
        heads = tuple((layer, head) for layer, head in header["heads"])
        vectors, signatures = vectors_of(tensors), keyed_by_layer(header["signatures"])
        return cls(header["site"], vectors, signatures, header["provenance"], heads, tensors.get("accuracies"))

    def check_content(self) -> None:
        super().check_content()
        units, _ = self.shape
        require(self.site == "z", f"it acts on {self.site!r}, not on heads")
        places = all(len(place) == 2 and type(place[0]) is type(place[1]) is int for place in self.heads)
        require(places, f"it has heads {list(self.heads)}, not pairs of layer and head")
        unknown = [place for place in self.heads if place[0] not in self.vectors or not 0 <= place[1] < units]
        require(not unknown, f"it has heads {unknown} of layers {list(self.layers)} with {units} heads")
        steered = [
            (layer, head) for layer, x in self.vectors.items() for head in x.abs().amax(-1).nonzero()[:, 0].tolist()
        ]
        same = sorted(steered) == sorted(self.heads)
        require(same, f"it has heads {sorted(self.heads)}, and vectors of heads {sorted(steered)}")
        if self.accuracies is not None:
            shape = tuple(self.accuracies.shape)
            layers = self.n_layers if self.n_layers is not None else shape[0]
            require(shape == (layers, units), f"its accuracies have shape {shape}")
            shares = bool(((self.accuracies >= 0) & (self.accuracies <= 1)).all())
            require(shares, "an accuracy is no share")
            ranked = self.accuracies[tuple(torch.tensor(list(self.heads)).T)]
            others = torch.ones_like(self.accuracies, dtype=torch.bool)
            others[tuple(torch.tensor(list(self.heads)).T)] = False
            best = bool((ranked.diff() <= 0).all()) and bool((self.accuracies[others] <= ranked[-1]).all())
            require(best, "its heads are not those of the best probes, the best first")

    def __repr__(self) -> str:
        return f"ITI(heads={list(self.heads[:8])}{', …' if len(self.heads) > 8 else ''})"


def iti(
    model: Any,
    demonstrations: Iterable[Demonstration],
    heads: SupportsIndex = 48,
    direction: str = "mass_mean",
    validation: SupportsFloat = 0.2,
    seed: SupportsIndex = 0,
    batch_size: SupportsIndex = 16,
    progress: bool = True,
    *,
    prepend_bos: bool = True,
) -> ITI:
    """Find the heads that tell positive from negative texts, and the directions that they tell them by.

    As in the authors' code, the probes are scikit-learn's logistic regression with its default penalty, the mass-mean
    direction and σ come from all demonstrations, and only the choice of heads rests on the held-out ones. Heads of
    equal accuracy are ranked by the probe's loss on the held-out texts.

    Args:
        model: a TransformerLens model.
        demonstrations: at least two; their neutral texts play no part.
        heads: K, how many heads to steer.
        direction: θ: "mass_mean", from the mean of the negative to that of the positive activations, or "probe", the
            probe's weight.
        validation: share of the demonstrations held out to rank the heads; both texts of one stay together.
        seed: of the split.
        batch_size: demonstrations at a time.
        progress: show progress bars.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.

    Returns:
        The edit. Memory while fitting: 2 · demonstrations · layers · heads · d_head numbers.

    Raises:
        InputError: more heads than the model has, an unknown direction, a share that leaves no demonstration on one
            side.
        DemonstrationError: a text longer than the model's context; names it. Checked before any forward pass.
        ActivationError: NaN or infinite activations, or a chosen head without a direction; names it.
    """
    from sklearn.metrics import log_loss

    lens = Lens.of(model)
    warn_of_installed(model, "heads are probed")
    k, seed = as_integer(heads, "heads", least=1), as_integer(seed, "seed")
    batch_size = as_integer(batch_size, "batch_size", least=1)
    share = as_number(validation, "validation")
    n_heads, d_head = Site.of("z").shape(lens)
    if k > lens.n_layers * n_heads:
        raise InputError(f"heads {k}: model {lens.name!r} has only {lens.n_layers * n_heads}")
    if direction not in DIRECTIONS:
        raise InputError(f"unknown direction {direction!r}: expected one of {', '.join(DIRECTIONS)}")
    demonstrations = Demonstrations.of(demonstrations)
    training, held_out = _split(len(demonstrations), share, seed)
    x = _read(lens, demonstrations, batch_size=batch_size, progress=progress, prepend_bos=prepend_bos)

    accuracies = torch.zeros(lens.n_layers, n_heads, dtype=torch.float64)
    losses = torch.zeros_like(accuracies)
    vectors = torch.zeros(lens.n_layers, n_heads, d_head, dtype=torch.float64)
    for layer in tracked(range(lens.n_layers), "fitting probes", lens.n_layers, show=progress):
        at_layer = x[:, :, layer].double()
        probes = [probe(*_labelled(at_layer[:, training, head])) for head in range(n_heads)]
        for head, fitted in enumerate(probes):
            inputs, labels = _labelled(at_layer[:, held_out, head])
            accuracies[layer, head] = fitted.score(inputs, labels)
            losses[layer, head] = log_loss(labels, fitted.predict_proba(inputs))
        positive, negative = at_layer.mean(1)
        weights = torch.from_numpy(np.concatenate([fitted.coef_ for fitted in probes]))
        vectors[layer] = _scaled(positive - negative if direction == "mass_mean" else weights, at_layer)

    places = [(layer, head) for layer in range(lens.n_layers) for head in range(n_heads)]
    places.sort(key=lambda place: (-accuracies[place].item(), losses[place].item()))
    chosen = tuple(places[:k])
    for layer, head in chosen:
        if not vectors[layer, head].norm() > 0:
            raise ActivationError(f"layer {layer}, head {head}: positive and negative activations do not differ")
    steered: dict[int, Tensor] = {layer: torch.zeros_like(vectors[layer]) for layer, _ in sorted(chosen)}
    for layer, head in chosen:
        steered[layer][head] = vectors[layer, head]
    provenance = {
        "model": lens.record,
        "direction": direction,
        "validation": share,
        "seed": seed,
        "prepend_bos": prepend_bos,
        "demonstrations": [demonstrations.record],
        "versions": versions(),
    }
    return ITI("z", steered, None, provenance, chosen, accuracies, defaults=Defaults(positions=STEERED))


def _split(n: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Demonstrations to train on, and those held out."""
    held_out = max(1, round(share * n))
    if not 0 < share < 1 or held_out >= n:
        raise InputError(
            f"validation {share:g} of {n} demonstrations leaves none to hold out or none to train on: expected a share "
            f"between 0 and 1, and at least two demonstrations"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[held_out:]), sorted(order[:held_out])


def _read(
    lens: Lens, demonstrations: Demonstrations, *, batch_size: int, progress: bool, prepend_bos: bool
) -> Float[Tensor, "two n layers heads d_head"]:
    """Last-token z of the positive texts (0) and the negative ones (1), in float32 at least, on the CPU."""
    layers = tuple(range(lens.n_layers))
    dtype = torch.promote_types(lens.dtype, torch.float32)
    found = torch.zeros(2, len(demonstrations), lens.n_layers, *Site.of("z").shape(lens), dtype=dtype)
    reading = Reading("z", prepend_bos=prepend_bos)
    for indices, three in reading.read(lens, demonstrations, layers, batch_size=batch_size, progress=progress):
        names = [demonstrations.names[i] for i in indices]
        for side, kind in enumerate(("positive", "negative")):
            read = getattr(three, kind)
            refuse_non_finite(kind, read, names, "z", layers)
            found[side, indices] = read.to(found)
    return found


def probe(x: Float[np.ndarray, "n d"], labels: Float[np.ndarray, " n"]) -> Any:
    """A fitted `LogisticRegression` of scikit-learn's, with its default penalty, for labels 0 and 1.

    It is fitted by Newton's method, whose steps do not depend on the scale of the activations. That scale differs a
    hundredfold between heads, and first-order methods would stop at different distances from the optimum.
    """
    # Imported here, since importing it takes about as long as importing much of sea_lens.
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(x, labels)


def _labelled(x: Float[Tensor, "two n d"]) -> tuple[Float[np.ndarray, "both d"], Float[np.ndarray, " both"]]:
    """The positive activations of a head and then the negative ones, with labels 1 and 0."""
    labels = np.repeat([1.0, 0.0], x.shape[1])
    return rearrange(x, "two n d -> (two n) d").numpy(), labels


def _scaled(directions: Float[Tensor, "heads d"], x: Float[Tensor, "two n heads d"]) -> Float[Tensor, "heads d"]:
    """σθ of each head: its unit direction times the standard deviation of all its activations along it."""
    unit = torch.nn.functional.normalize(directions, dim=-1)
    along = einsum(x, unit, "two n heads d, heads d -> two n heads")
    return rearrange(along.std(dim=(0, 1), correction=0), "heads -> heads 1") * unit
