"""Whether the model in memory is the model that was asked for, and whether what sea_lens does to it works.

`load_model` asks before it gives a model away, comparing it with the Hugging Face model that it was made from; a model
that a user brings is asked when it is first used. What was measured is kept with the model and not measured again;
what may change at any time (training mode, processing of the weights) is looked at anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError, SeaLensError, UnsupportedModelError
from .cache_probe import cached_reading
from .configuration import hooked_windows, rotation_deviation, windows
from .evaluation_mode import active_dropout
from .lens import Lens
from .probes import largest, whole, without_effect
from .processing import UNEMBEDDING, processing
from .reference import Probe, Reference, unwrapped
from .sites import SITES
from .tokens import bos_token

if TYPE_CHECKING:
    import pandas as pd

# Largest deviation of logits, relative to the largest logit: right models differ by a hundredth of it, wrong ones by
# a hundred times as much. In 16 bits two right ways to compute the same differ by this much.
_LIMITS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Rotary frequencies are computed in float32.
_FREQUENCY_LIMIT = 1e-5
_COMPUTES_OTHERWISE = "load it with the other backend, or a newer TransformerLens"


@dataclass(frozen=True)
class Fact:
    """One thing that was looked at.

    Attributes:
        name: what.
        measured: what was found.
        limit: what is expected, None where anything is.
        ok: whether it is.
        advice: what to do, empty where nothing has to be done.
        decisive: whether a model of which this does not hold must not be used.
    """

    name: str
    measured: Any
    limit: Any = None
    ok: bool = True
    advice: str = ""
    decisive: bool = False


@dataclass(frozen=True)
class ModelCheck:
    """What was found about a model.

    Attributes:
        facts: one for each thing that was looked at.
        deviation: largest deviation of its logits from the reference's, relative to the largest logit; None without a
            reference.
        unusable_sites: layers of each site at which a hook does not run once in a pass, or takes no effect.
        edited: whether hooks or changes of sea_lens stood in the model, so that it was not compared.
    """

    facts: tuple[Fact, ...]
    deviation: float | None = None
    unusable_sites: dict[str, list[int]] | None = None
    edited: bool = False

    @property
    def ok(self) -> bool:
        """Whether everything is as expected."""
        return all(fact.ok for fact in self.facts)

    @property
    def record(self) -> dict[str, Any]:
        """What a saved result says of the check; JSON values."""
        return {
            "reference": None if self.deviation is None else "Hugging Face",
            # Its order of magnitude: rounding is not the same on every machine.
            "deviation": None if self.deviation is None else float(f"{self.deviation:.0e}"),
            "failed": [fact.name for fact in self.facts if not fact.ok],
        }

    def to_frame(self) -> "pd.DataFrame":
        """One row per check: name, measured, limit, ok, what to do."""
        import pandas as pd

        rows = [(fact.name, fact.measured, fact.limit, fact.ok, fact.advice) for fact in self.facts]
        return pd.DataFrame(rows, columns=["name", "measured", "limit", "ok", "what to do"])

    def refuse(self, name: str) -> None:
        """Refuse a model of which something decisive does not hold.

        Raises:
            UnsupportedModelError: naming the first such thing, what was measured and what was expected.
        """
        for fact in self.facts:
            if fact.decisive and not fact.ok:
                limit = "" if fact.limit is None else f" (expected {_shown(fact.limit)})"
                raise UnsupportedModelError(
                    f"model {name!r}: {fact.name}: {_shown(fact.measured)}{limit}; {fact.advice}"
                )

    def __str__(self) -> str:
        cells = [
            (
                "ok" if fact.ok else "NOT OK",
                fact.name,
                _shown(fact.measured),
                "" if fact.limit is None else _shown(fact.limit),
            )
            for fact in self.facts
        ]
        widths = [max(len(row[column]) for row in cells) for column in range(3)]
        lines = []
        for row, fact in zip(cells, self.facts, strict=True):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip()
            lines.append(f"{line}\n        {fact.advice}" if fact.advice and not fact.ok else line)
        return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def check_model(model: Any) -> ModelCheck:
    """Measure whether a model is what it should be, and whether what is done to it works (docs/method.md 1.1).

    The logits of 64 seeded tokens are compared with those of the Hugging Face model where there is one (`load_model`
    and every TransformerBridge have it); the rest is measured on the model alone. It takes less time than five forward
    passes, and is not measured again for the same model, but for training mode and processing.

    Args:
        model: a TransformerLens model.

    Returns:
        One row for each thing that was looked at: conversion, causality, reading with a cache, hooks of every site,
        evaluation mode, gradients, context, tokenizer, processing, dtype and devices.

    Raises:
        UnsupportedModelError: it is no model of TransformerLens, or cannot be run at all.

    Example:
        >>> report = sl.check_model(bed.model)
        >>> report.ok
        True
    """
    lens = Lens.of(model)
    kept = lens.checked
    if kept is None or (kept.edited and not _is_changed(lens)):
        kept = checked(lens)
    return replace(kept, facts=(*kept.facts, *_changing(lens)))


def ensure_usable(lens: Lens) -> None:
    """Refuse a model that would give wrong numbers; measured when a model is first used, and kept.

    Raises:
        UnsupportedModelError: it deviates from its reference, is not causal, or cannot be run.
        InputError: it drops out units at random.
    """
    if lens.checked is None:
        checked(lens).refuse(lens.name)
    refuse_dropout(lens)


def refuse_dropout(lens: Lens) -> None:
    """Refuse a model whose passes are random.

    Raises:
        InputError: it is in training mode, and has something to drop.
    """
    if (what := active_dropout(lens.model)) is not None:
        raise InputError(f"the model drops out units at random ({what}): expected one in evaluation mode, model.eval()")


def refuse_site(lens: Lens, site: str, layers: Sequence[int]) -> None:
    """Refuse a site at which hooks were seen not to run, or to change nothing.

    Raises:
        UnsupportedModelError: naming the layers.
    """
    found = lens.checked.unusable_sites if lens.checked is not None else None
    if found and (bad := [layer for layer in layers if layer in found.get(site, [])]):
        raise UnsupportedModelError(
            f"hooks of model {lens.name!r} at site {site!r} do not run once in a pass, or take no effect, in layers {bad}"
        )


def checked(lens: Lens, reference: Reference | None = None) -> ModelCheck:
    """Run the check and keep its outcome on the lens.

    Args:
        lens: the model.
        reference: what it is to be compared with; by default the Hugging Face model inside a bridge, if any.

    Raises:
        UnsupportedModelError: the model cannot be run at all.
    """
    standing = _is_changed(lens)
    if reference is None and lens.backend == "bridge" and not standing:
        reference = _reference_of_bridge(lens)
    probe = reference.probe if reference is not None else Probe.of(lens.d_vocab, lens.n_ctx)
    logits, counts = _first_pass(lens, probe)
    facts, deviation = [], None
    if reference is not None:
        deviation = _deviation(lens, logits, reference)
        facts += [_conversion(lens, deviation), *_long_texts(lens, reference)]
    elif standing:
        facts.append(Fact("logits against the original", "not compared: hooks stand in the model"))
    else:
        facts.append(Fact("logits against the original", "not compared: no Hugging Face model is at hand"))
    facts += [_causality(lens, probe, logits), *_cache(lens)]
    unusable, more = _hooks(lens, probe, counts)
    lens.checked = ModelCheck((*facts, *more, *_standing_facts(lens)), deviation, unusable, standing)
    return lens.checked


def _is_changed(lens: Lens) -> bool:
    return bool(lens.observer.standing) or lens.has_foreign_hooks()


def _reference_of_bridge(lens: Lens) -> Reference | None:
    probe = Probe.of(lens.d_vocab, lens.n_ctx)
    try:
        return Reference.of(unwrapped(lens.model), probe)
    # Models of other people's code may take apart what a copy of their modules needs; then there is no reference.
    except Exception:
        return None


def _first_pass(lens: Lens, probe: Probe) -> tuple[Tensor, dict[str, list[int]]]:
    # Whatever is wrong with a model shows here first, as any error at all.
    try:
        return whole(lens, probe)
    except SeaLensError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedModelError(f"model {lens.name!r} ({lens.backend}) cannot be run: {reason}") from error


def _deviation(lens: Lens, logits: Tensor, reference: Reference) -> float:
    given, expected = logits.float(), reference.logits.float()
    # Centring moves all logits of a position by one number, which no probability shows.
    if UNEMBEDDING in processing(lens.model):
        given, expected = given - given.mean(-1, keepdim=True), expected - expected.mean(-1, keepdim=True)
    width = min(given.shape[-1], expected.shape[-1])
    read = reference.probe.mask.bool()
    given, expected = given[read][:, :width], expected[read][:, :width]
    same = given == expected
    distances = torch.where(same, 0.0, (given - expected).abs())
    finite = expected[expected.isfinite()]
    return largest(distances) / max(finite.abs().max().item() if len(finite) else 0.0, torch.finfo(torch.float32).tiny)


def _conversion(lens: Lens, deviation: float) -> Fact:
    limit = _LIMITS.get(lens.dtype, 1e-1)
    return Fact(
        "logits against the original, relative",
        deviation,
        limit,
        deviation <= limit,
        f"{lens.backend} computes another model than Hugging Face: {_COMPUTES_OTHERWISE}",
        decisive=True,
    )


def _long_texts(lens: Lens, reference: Reference) -> list[Fact]:
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


def _summary(widths: list[int | None]) -> str:
    kinds = sorted({width for width in widths if width is not None})
    if not kinds:
        return "none"
    return ", ".join(f"{kind} in layers {[at for at, width in enumerate(widths) if width == kind]}" for kind in kinds)


def _causality(lens: Lens, probe: Probe, logits: Tensor) -> Fact:
    first, second = (one[: probe.shared].float() for one in logits)
    moved = largest((first - second).abs()) if torch.isfinite(first).all() and probe.shared else 0.0
    limit = _LIMITS.get(lens.dtype, 1e-1) * max(first.abs().nan_to_num(posinf=0.0).amax().item(), 1e-30)
    return Fact(
        "later tokens move earlier logits by",
        moved,
        limit,
        moved <= limit,
        "the model is not causal, so that there is no probability of a next token: expected a causal language model",
        decisive=True,
    )


def _cache(lens: Lens) -> list[Fact]:
    found = cached_reading(lens)
    name = "reading with a cache, relative"
    facts = (
        [Fact(name, "read whole, since the model's own cache is not exact")]
        if found.deviation is None
        else [Fact(name, found.deviation, found.limit, found.deviation <= found.limit, "", decisive=True)]
    )
    own = Fact("the model's own generate, relative", found.own, found.limit)
    return [*facts, own if found.own_is_exact else replace(own, advice="call it with use_past_kv_cache=False")]


def _hooks(lens: Lens, probe: Probe, counts: dict[str, list[int]]) -> tuple[dict[str, list[int]], list[Fact]]:
    silent = without_effect(lens, probe, counts)
    unusable: dict[str, list[int]] = {}
    facts = []
    for site in SITES:
        missing, wrong = (
            [layer for layer, count in enumerate(counts[site]) if is_bad(count)]
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
        if bad := sorted({*wrong, *silent.get(site, [])}):
            unusable[site] = bad
        expected = "called once, takes effect"
        facts.append(Fact(f"hooks at {site}", ", ".join(said) or expected, expected, not said, "edit at another site"))
    return unusable, facts


def _standing_facts(lens: Lens) -> list[Fact]:
    """Of the context and the tokenizer, which do not change."""
    facts = [Fact("context in tokens", lens.n_ctx)]
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


def _changing(lens: Lens) -> list[Fact]:
    """What may change at any time, so is looked at whenever it is asked for."""
    dropped = active_dropout(lens.model)
    frozen = sum(parameter.is_inference() for parameter in lens.model.parameters())
    dtypes, devices = (
        sorted({str(getattr(parameter, name)).removeprefix("torch.") for parameter in lens.model.parameters()})
        for name in ("dtype", "device")
    )
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
    ]
