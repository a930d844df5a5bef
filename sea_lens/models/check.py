"""Whether the model in memory is the model that was asked for, and whether what sea_lens does to it works.

`load_model` asks before it gives a model away, comparing it with the Hugging Face model that it was made from; a model
that a user brings is asked when it is first used. What was measured is kept with the model and not measured again;
what may change at any time (training mode, processing of the weights) is looked at anew.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..errors import InputError, SeaLensError, UnsupportedModelError
from .check_report import Fact, ModelCheck
from .evaluation_mode import active_dropout
from .facts import cache, causality, changing, conversion, hooks, lasting, long_texts, numbers
from .lens import Lens
from .plain_model import PlainModel
from .predictions import Predictions
from .probes import Compared, whole
from .reference import Probe, Read, Reference, unwrapped

_ENCODERS = ("HookedEncoder", "HookedEncoderDecoder", "HookedAudioEncoder")


def check_model(model: Any) -> ModelCheck:
    """Measure whether a model is what it should be, and whether what is done to it works (docs/method.md 1.5).

    The logits of 64 seeded tokens are compared with those of the Hugging Face model where there is one (`load_model`
    and every TransformerBridge have it); the rest is measured on the model alone, in a few more passes over these and
    shorter texts. It is not measured again for the same model, but for training mode and processing, or
    where its weights have gone to another dtype.

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
    if active_dropout(model) is not None:
        return ModelCheck((Fact("logits against the original", "not compared: passes are random"), *changing(lens)))
    kept, read = _kept(lens), None
    if kept is None or (kept.edited and not _is_changed(lens)):
        kept, read = checked(lens)
    # Whoever reads with a cache asks for this as well, so that loading a model need not.
    return replace(kept, facts=(*kept.facts, *cache(lens, read), *changing(lens)))


def ensure_usable(lens: Lens | PlainModel) -> None:
    """Refuse a model that would give wrong numbers; measured when a model is first used, and kept.

    A plain Hugging Face model is no conversion of anything, and needs only to be deterministic.

    Raises:
        UnsupportedModelError: it deviates from its reference, is not causal, or cannot be run.
        InputError: it drops out units at random.
    """
    if isinstance(lens, PlainModel):
        lens.refuse_dropout()
        return
    refuse_dropout(lens)
    if not lens.trusted:
        (_kept(lens) or checked(lens)[0]).refuse(lens.name)


def refuse_dropout(lens: Lens) -> None:
    """Refuse a model whose passes are random.

    Raises:
        InputError: it is in training mode, and has something to drop.
    """
    if (what := active_dropout(lens.model)) is not None:
        raise InputError(f"the model drops out units at random ({what}): expected one in evaluation mode, model.eval()")


def refuse_site(lens: Lens | PlainModel, site: str, layers: Sequence[int]) -> None:
    """Refuse a site at which hooks were seen not to run, or to change nothing.

    Raises:
        UnsupportedModelError: naming the layers.
    """
    found = lens.checked.unusable_sites if lens.checked is not None else None
    if found and (bad := [layer for layer in layers if layer in found.get(site, [])]):
        raise UnsupportedModelError(
            f"hooks of model {lens.name!r} at site {site!r} do not run once in a pass, or change nothing: layers {bad}"
        )


def refuse_inference_tensors(lens: Lens) -> None:
    """Refuse a model of which no gradients can be had.

    Raises:
        UnsupportedModelError: its parameters were made under `torch.inference_mode`.
    """
    if any(parameter.is_inference() for parameter in lens.model.parameters()):
        raise UnsupportedModelError(
            f"parameters of model {lens.name!r} were made under torch.inference_mode(), so that no gradients can be "
            f"had: expected a model that was made outside of it, or that load_model loaded"
        )


def checked(lens: Lens, reference: Reference | None = None) -> tuple[ModelCheck, Read | None]:
    """Run the check and keep its outcome on the lens.

    Args:
        lens: the model.
        reference: what it is to be compared with; by default the Hugging Face model inside a bridge, if any.

    Returns:
        The outcome, and what was read with nothing of sea_lens's or the user's in the model; None where something was.

    Raises:
        UnsupportedModelError: the model cannot be run at all.
    """
    standing = _is_changed(lens)
    if reference is None and lens.backend == "bridge" and not standing:
        reference = _reference_of_bridge(lens)
    probe = reference.probe if reference is not None else Probe.of(lens.d_vocab, lens.n_ctx)
    read = _first_pass(lens, probe)
    compared = Compared.of(lens, read, probe, reference)
    # Activations that are no numbers are refused with their layer and their text where they are read.
    facts, deviation = [numbers(lens, compared.bad, decisive=reference is not None)], None
    if reference is not None and (facts[0].ok or reference.is_numbers):
        deviation = compared.deviation
        facts += [conversion(lens, deviation), *long_texts(lens, reference)]
    elif reference is not None:
        facts.append(Fact("logits against the original", "not compared: they are no numbers there either"))
    elif standing:
        facts.append(Fact("logits against the original", "not compared: hooks stand in the model"))
    else:
        facts.append(Fact("logits against the original", "not compared: no Hugging Face model is at hand"))
    facts.append(causality(lens, probe, read))
    unusable, more = hooks(lens, probe)
    lens.checked = ModelCheck((*facts, *more, *lasting(lens)), deviation, unusable, standing, _dtypes(lens))
    return lens.checked, None if standing else Read.of(probe, read)


def _kept(lens: Lens) -> ModelCheck | None:
    """What was found before, unless the weights have gone to another dtype since."""
    return lens.checked if lens.checked is not None and lens.checked.dtypes == _dtypes(lens) else None


def _dtypes(lens: Lens) -> frozenset[torch.dtype]:
    return frozenset(parameter.dtype for parameter in lens.model.parameters())


def _is_changed(lens: Lens) -> bool:
    return bool(lens.observer.standing_here()) or lens.has_foreign_hooks()


def _reference_of_bridge(lens: Lens) -> Reference | None:
    probe = Probe.of(lens.d_vocab, lens.n_ctx)
    try:
        return Reference.of(unwrapped(lens.model), probe)
    # Models of other people's code may take apart what a copy of their modules needs; then there is no reference.
    except Exception:
        return None


def _first_pass(lens: Lens, probe: Probe) -> Predictions:
    if any(one.__name__ in _ENCODERS for one in type(lens.model).__mro__):
        raise UnsupportedModelError(f"{type(lens.model).__name__} is not causal: expected a causal language model")
    # Whatever is wrong with a model shows here first, as any error at all.
    try:
        return whole(lens, probe)
    except SeaLensError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedModelError(f"model {lens.name!r} ({lens.backend}) cannot be run: {reason}") from error
