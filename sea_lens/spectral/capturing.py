"""From a model and demonstrations to cross-covariances, in one streamed pass (SEA.md sections 1 and 2)."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer
from .._support.progress import tracked
from ..edits.where import LayerChoice, choose_layers
from ..errors import InputError, MismatchError
from ..models.decoding import generate_greedily
from ..models.lens import Lens
from ..models.readout import FINAL_NORM, probe_norm
from ..models.sites import SITES, Site
from ..models.tokens import bos_token, encode, pad
from ..texts.demonstrations import Demonstrations
from ..texts.items import Demonstration
from .covariance import CrossCovariance
from .edit import SpectralEdit
from .features import FeatureMap, feature_map

POSITIONS = ("last", "mean", "random")
NEUTRALS = ("prompt", "generated")
KINDS = ("neutral", "positive", "negative")


@dataclass(frozen=True)
class Reading:
    """Where the activation of one text stands: tokens start to stop of one sequence of a batch."""

    sequence: int
    start: int
    stop: int
    seed: int

    def positions(self, position: str) -> slice:
        """The positions that are averaged over."""
        if position == "last":
            return slice(self.stop - 1, self.stop)
        if position == "random":
            picked = self.start + self.seed % (self.stop - self.start)
            return slice(picked, picked + 1)
        return slice(self.start, self.stop)


def capture(
    model: Any,
    demonstrations: Iterable[Demonstration],
    site: str = "mlp_out",
    layers: LayerChoice = "all",
    position: str = "last",
    neutral: str = "prompt",
    feature: str | FeatureMap = "identity",
    batch_size: int = 16,
    progress: bool = True,
    *,
    fit_site: str | None = None,
    prepend_bos: bool = True,
    max_new_tokens: int = 32,
    seed: int = 0,
) -> CrossCovariance:
    """Run the demonstrations through the model and sum up what a fit needs; memory does not depend on their number.

    Args:
        model: a TransformerLens model, unedited or with whatever hooks the user has put there.
        demonstrations: at least one; N of them.
        site: what the edit will act on: "mlp_out", "attn_out", "resid_post", or "z" (each head on its own).
        layers: which layers, as in `choose_layers`, by default all.
        position: the activation of a text is that of its "last" token, the "mean" over its tokens, or that of a
            "random" one. BOS does not count as a token of the text, unless it is all there is: its activation is the
            same for every text and often many times larger than the rest.
        neutral: the neutral text is the "prompt" alone, or the prompt with the model's own greedy continuation
            ("generated", as the release does).
        feature: the feature map φ, by name or your own.
        batch_size: demonstrations at a time.
        progress: show a progress bar.
        fit_site: read from another site than the edit will act on: one of the sites of the same width, or
            "hidden_states", the residual stream with the last layer after the final norm, as the release does.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        max_new_tokens: longest continuation for "generated".
        seed: for "random"; which token is read depends on the seed and the text alone, not on the batches.

    Returns:
        Cross-covariances, streamed in float64 on the model's device and returned on the CPU.

    Raises:
        InputError: unknown site, layer, position, neutral choice or feature.
        DemonstrationError: a text longer than the model's context; names it. Checked before any forward pass.
        ActivationError: NaN or infinite activations; names the layer and the demonstration.
    """
    lens = Lens.of(model)
    read_site = site if fit_site is None else fit_site
    check_capture_options(site, read_site, position, neutral)
    batch_size = as_integer(batch_size, "batch_size", least=1)
    max_new_tokens = as_integer(max_new_tokens, "max_new_tokens", least=1)
    chosen = choose_layers(layers, range(lens.n_layers))
    demonstrations = Demonstrations.of(demonstrations)

    provenance = {
        "model": lens.record,
        "fit_site": read_site,
        "position": position,
        "neutral": neutral,
        "prepend_bos": prepend_bos,
        "demonstrations": [{"n": len(demonstrations), "sha256": demonstrations.digest}],
    }
    provenance |= {"max_new_tokens": max_new_tokens} if neutral == "generated" else {}
    provenance |= {"seed": seed} if position == "random" else {}
    units, width = Site.of(site).shape(lens)
    # Apple's GPUs have no float64; sums are then kept on the CPU.
    device = torch.device("cpu") if lens.device.type == "mps" else lens.device
    covariance = CrossCovariance.empty(
        chosen, units, width, site=site, feature=feature_map(feature), provenance=provenance, device=device
    )
    options = {"position": position, "neutral": neutral, "prepend_bos": prepend_bos}
    options |= {"max_new_tokens": max_new_tokens, "seed": seed, "batch_size": batch_size, "progress": progress}
    for indices, stacked in activations(lens, demonstrations, site, read_site, chosen, **options):
        # Readings come in threes: the neutral, positive and negative text of each demonstration.
        x = stacked.to(device)
        names = [demonstrations.names[i] for i in indices]
        covariance = covariance.updated(x[0::3], x[1::3], x[2::3], names)
    return covariance.to("cpu")


def check_capture_options(site: str, fit_site: str, position: str, neutral: str) -> None:
    """Refuse options that no capture can have; raises as `capture`."""
    per_head = Site.of(site).per_head
    if fit_site != "hidden_states" and fit_site not in SITES:
        raise InputError(f"unknown fit_site {fit_site!r}: expected one of {', '.join(SITES)}, hidden_states")
    # The residual stream is read whole.
    if per_head != (fit_site in SITES and Site.of(fit_site).per_head):
        raise MismatchError(f"fit_site {fit_site!r} and site {site!r} have activations of different widths")
    for name, given, known in (("position", position, POSITIONS), ("neutral", neutral, NEUTRALS)):
        if given not in known:
            raise InputError(f"unknown {name} {given!r}: expected one of {', '.join(known)}")


def neutral_activations(
    model: Any, edit: SpectralEdit, demonstrations: Demonstrations, layers: Sequence[int]
) -> dict[int, Float[Tensor, "n units d"]]:
    """The neutral activation of each demonstration at some layers, read as the edit's were; float64 on the CPU.

    Raises:
        InputError: the edit does not say how its activations were read.
    """
    lens = Lens.of(model)
    options = capture_options(edit)
    options["progress"] = False
    read_site = options.pop("fit_site")
    found = torch.zeros(len(demonstrations), len(layers), *edit.shape, dtype=torch.float64)
    for indices, stacked in activations(lens, demonstrations, edit.site, read_site, tuple(layers), **options):
        found[indices] = stacked[0::3].cpu()
    return {layer: found[:, place] for place, layer in enumerate(layers)}


def capture_options(edit: SpectralEdit) -> dict[str, Any]:
    """How the activations of a captured edit were read: `fit_site`, `position`, … as in `capture`.

    Raises:
        InputError: it was not fitted from `capture`.
    """
    if "position" not in edit.provenance:
        raise InputError("this edit was not fitted from captured activations, so it does not say how to read them")
    names = ("fit_site", "position", "neutral", "prepend_bos", "max_new_tokens", "seed")
    return {name: edit.provenance[name] for name in names if name in edit.provenance}


def activations(
    lens: Lens,
    demonstrations: Demonstrations,
    site: str,
    read_site: str,
    layers: Sequence[int],
    *,
    position: str = "last",
    neutral: str = "prompt",
    prepend_bos: bool = True,
    max_new_tokens: int = 32,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> Iterator[tuple[list[int], Float[Tensor, "readings layers units d"]]]:
    """Batches of demonstrations, by index, with three readings of each, in float64; all texts are encoded first.

    The readings are those of the neutral, positive and negative text of each demonstration in turn.
    """
    names, convert = _points(lens, read_site, layers)
    texts = [_encoded(lens, *named, prepend_bos) for named in zip(demonstrations.names, demonstrations, strict=True)]
    if neutral == "generated":
        prompts = [sequences[0] for sequences in texts]
        continued = generate_greedily(lens, prompts, max_new_tokens, batch_size=batch_size)
        texts = [(prompt + more, *rest) for (prompt, *rest), more in zip(texts, continued, strict=True)]
    first_token = 1 if prepend_bos and bos_token(lens) is not None else 0
    order = sorted(range(len(texts)), key=lambda i: -max(map(len, texts[i])))
    starts = range(0, len(order), batch_size)
    for start in tracked(starts, "capturing activations", len(starts), show=progress):
        indices = order[start : start + batch_size]
        sequences, readings = _plan([texts[i] for i in indices], first_token, seed)
        tokens, mask = pad(sequences)

        def gather(x: Tensor, name: str, readings: list[Reading] = readings) -> Float[Tensor, "readings units d"]:
            values = [reduce(x[r.sequence, r.positions(position)].double(), "pos ... -> ...", "mean") for r in readings]
            return Site.of(site).to_units(convert(torch.stack(values), name))

        with torch.no_grad():
            seen = lens.read(tokens, mask, names, reduce=gather)
        yield indices, torch.stack([seen[name] for name in names], dim=1)


def _points(lens: Lens, read_site: str, layers: Sequence[int]) -> tuple[list[str], Callable[[Tensor, str], Tensor]]:
    """Hook points to read, one for each layer, and what turns a reading into the site's activation."""
    if read_site != "hidden_states":
        return [lens.point(read_site, layer) for layer in layers], lambda x, name: x
    norm = probe_norm(lens, FINAL_NORM)
    normalized = f"{FINAL_NORM}.hook_normalized"
    names = [normalized if layer == lens.n_layers - 1 else lens.point("resid_post", layer) for layer in layers]
    return names, lambda x, name: x * norm.gain + norm.bias if name == normalized else x


def _encoded(lens: Lens, name: str, demonstration: Demonstration, prepend_bos: bool) -> tuple[list[int], ...]:
    return tuple(
        encode(lens, getattr(demonstration, kind), prepend_bos=prepend_bos, what=f"{name}, {kind} text,")
        for kind in KINDS
    )


def _plan(texts: Sequence[tuple[list[int], ...]], first_token: int, seed: int) -> tuple[list[list[int]], list[Reading]]:
    """Sequences to run, and where in them each text is read, three readings for each demonstration.

    In a causal model a text that begins another is computed along with it: a prompt costs no sequence of its own
    where its tokens begin those of the positive text, as they usually do.
    """
    sequences: list[list[int]] = []
    readings: list[Reading] = []
    for neutral, positive, negative in texts:
        base = len(sequences)
        sequences += [positive, negative]
        if positive[: len(neutral)] == neutral:
            host = base
        else:
            sequences.append(neutral)
            host = base + 2
        for tokens, sequence in ((neutral, host), (positive, base), (negative, base + 1)):
            start = min(first_token, len(tokens) - 1)
            readings.append(Reading(sequence, start, len(tokens), _seed_of(tokens, seed)))
    return sequences, readings


def _seed_of(tokens: Sequence[int], seed: int) -> int:
    return zlib.crc32(f"{seed} {' '.join(map(str, tokens))}".encode())
