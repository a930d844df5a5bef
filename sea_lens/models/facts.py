"""The facts that the check of a model looks at, one function for each kind."""

from dataclasses import replace

import torch

from .._support.arguments import listed
from .cache_probe import cached_reading
from .check_report import Fact
from .configuration import hooked_windows, rotation_deviation, windows
from .evaluation_mode import active_dropout
from .lens import Lens
from .predictions import Predictions
from .probes import Acting, largest
from .processing import processing
from .reference import Probe, Read, Reference
from .sites import SITES
from .tokens import bos_token

# Largest deviation of logits, relative to the largest logit: right models differ by a hundredth of it, wrong ones by
# a hundred times as much. In 16 bits two right ways to compute the same differ by this much.
_LIMITS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Rotary frequencies are computed in float32.
_FREQUENCY_LIMIT = 1e-5
_COMPUTES_OTHERWISE = "load it with the other backend, or a newer TransformerLens"


def conversion(lens: Lens, deviation: float) -> Fact:
    """Whether the model is the one of the reference."""
    limit = _LIMITS.get(lens.dtype, 1e-1)
    return Fact(
        "logits against the original, relative",
        deviation,
        limit,
        deviation <= limit,
        f"{lens.backend} computes another model than Hugging Face: {_COMPUTES_OTHERWISE}",
        decisive=True,
    )


def long_texts(lens: Lens, reference: Reference) -> list[Fact]:
    """What a short text cannot show of a HookedTransformer; a bridge runs the original's own modules."""
    if lens.backend == "bridge":
        return []
    # A window that is wider than every text acts on none.
    expected, given = (
        [None if width is None or width >= lens.n_ctx else width for width in widths]
        for widths in (windows(reference.config, lens.n_layers), hooked_windows(lens.model))
    )
    facts = [
        Fact(
            "attention windows",
            _summary(given),
            _summary(expected),
            given == expected,
            f"longer texts would be read otherwise than by Hugging Face: {_COMPUTES_OTHERWISE}",
            decisive=True,
        )
    ]
    if reference.rotations and getattr(lens.model.cfg, "positional_embedding_type", "") == "rotary":
        difference = rotation_deviation(lens.model, reference.rotations)
        facts.append(
            Fact(
                "rotary frequencies, relative",
                difference,
                _FREQUENCY_LIMIT,
                difference <= _FREQUENCY_LIMIT,
                f"longer texts would be read otherwise than by Hugging Face: {_COMPUTES_OTHERWISE}",
                decisive=True,
            )
        )
    return facts


def numbers(lens: Lens, bad: int, *, decisive: bool) -> Fact:
    """Whether the logits are numbers; `bad` of them are NaN or infinite."""
    advice = ""
    if bad:
        broken = next((name for name, one in lens.all_weights() if not bool(one.isfinite().all())), None)
        dtype = str(lens.dtype).removeprefix("torch.")
        advice = (
            f"activations overflow in {dtype}: load the model in another dtype"
            if broken is None
            else f"weight {broken.replace('._original_component', '')!r} holds NaN or infinity: expected finite weights"
        )
    return Fact("logits that are NaN or infinite", bad, 0, bad == 0, advice, decisive)


def _summary(widths: list[int | None]) -> str:
    kinds = sorted({width for width in widths if width is not None})
    if not kinds:
        return "none"
    return ", ".join(f"{kind} in layers {[at for at, width in enumerate(widths) if width == kind]}" for kind in kinds)


def causality(lens: Lens, probe: Probe, read: Predictions) -> Fact:
    """Whether the tokens behind those that both texts begin with change the logits of these."""
    first, second = read.rearranged(lambda states: states[:, : probe.shared]).whole()
    if not probe.shared or not first.isfinite().all():
        return Fact("later tokens move earlier logits by", "not measured")
    moved = largest((first - second).abs())
    limit = _LIMITS.get(lens.dtype, 1e-1) * max(first.abs().amax().item(), 1e-30)
    return Fact(
        "later tokens move earlier logits by",
        moved,
        limit,
        moved <= limit,
        "the model is not causal, so that there is no probability of a next token: expected a causal language model",
        decisive=True,
    )


def cache(lens: Lens, read: Read | None) -> list[Fact]:
    """How far cached reading is from reading whole, as sea_lens does it and as the model itself does."""
    found = cached_reading(lens, read=read)
    name = "reading with a cache, relative"
    facts = (
        [Fact(name, "read whole, since the model's own cache is not exact")]
        if found.deviation is None
        else [Fact(name, found.deviation, found.limit, found.deviation <= found.limit, "", decisive=True)]
    )
    own = Fact("the model's own generate, relative", "not measured" if found.own is None else found.own, found.limit)
    return [*facts, own if found.own_is_exact else replace(own, advice="call it with use_past_kv_cache=False")]


def hooks(lens: Lens, probe: Probe) -> tuple[dict[str, list[int]], list[Fact]]:
    """Layers of each site at which hooks do not do what they should, and what to say of each site."""
    acting = Acting.of(lens, probe)
    silent = acting.silent
    unusable: dict[str, list[int]] = {}
    facts = []
    for site in SITES:
        missing, wrong = (
            [layer for layer, count in enumerate(acting.calls[site]) if is_bad(count)]
            for is_bad in (lambda count: count == -1, lambda count: count not in (-1, 1))
        )
        said = [
            f"{what} in layers {layers}"
            for what, layers in (
                ("no hook point", missing),
                ("not called once", wrong),
                ("without effect", silent.get(site, [])),
            )
            if layers
        ]
        bad = sorted({*wrong, *silent.get(site, [])})
        if bad:
            unusable[site] = bad
        expected = "called once, takes effect"
        # What a layer lacks, as one without an MLP does, is told; an edit there is refused by name.
        facts.append(Fact(f"hooks at {site}", ", ".join(said) or expected, expected, not bad, "edit at another site"))
    return unusable, facts


def lasting(lens: Lens) -> list[Fact]:
    """Of the context and the tokenizer, which do not change."""
    facts = [Fact("context in tokens", lens.n_ctx), *_unmatched(lens)]
    tokenizer = lens.own_tokenizer or getattr(lens.model, "tokenizer", None)
    if tokenizer is None:
        return [*facts, Fact("tokenizer", "none", "one", False, "texts cannot be read: give the model a tokenizer")]
    facts.append(Fact("BOS", "none" if (bos := bos_token(lens)) is None else bos))
    beyond = max(0, len(tokenizer) - lens.d_vocab)
    facts.append(
        Fact(
            "tokens beyond the embedding",
            beyond,
            0,
            beyond == 0,
            "texts that hold such a token cannot be read: take them out of the tokenizer, or widen the embedding",
        )
    )
    return [*facts, Fact("chat template", "yes" if getattr(tokenizer, "chat_template", None) else "none")]


def _unmatched(lens: Lens) -> list[Fact]:
    if lens.unmatched is None:
        return []
    kinds = {
        "weights that the folder lacks": (lens.unmatched.missing, "they are random: expected all weights of the model"),
        "weights that were left out": (lens.unmatched.unexpected, "see whether config.json describes these weights"),
    }
    return [
        Fact(name, listed(found) or "none", "none", not found, advice if found else "")
        for name, (found, advice) in kinds.items()
    ]


def changing(lens: Lens) -> list[Fact]:
    """What may change at any time, so is looked at whenever it is asked for."""
    dropped = active_dropout(lens.model)
    parameters = list(lens.model.parameters())
    frozen = sum(parameter.is_inference() for parameter in parameters)
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})
    devices = sorted({str(lens.device), *(str(lens.layer_device(layer)) for layer in range(lens.n_layers))})
    elsewhere = [layer for layer in range(lens.n_layers) if lens.offloaded(layer) is not None]
    done = processing(lens.model)
    return [
        Fact("random in training mode", dropped or "nothing", "nothing", dropped is None, "call model.eval()"),
        Fact(
            "parameters made in inference mode",
            frozen,
            0,
            frozen == 0,
            "gradients cannot be had: load the model outside of torch.inference_mode()",
        ),
        Fact("processing of the weights", ", ".join(done) or "none"),
        Fact("dtype", ", ".join(dtypes)),
        Fact("devices", ", ".join(devices)),
        *([Fact("layers whose weights are brought for each pass", str(elsewhere))] if elsewhere else []),
    ]
