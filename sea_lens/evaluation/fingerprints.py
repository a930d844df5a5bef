"""What tells one model and one edit from another, so that results are not mixed up."""

import hashlib
import re
from typing import Any

import torch

from ..edits.activation import ActivationEdit
from ..edits.base import Edit
from ..edits.saved import SavedEdit
from ..models.language_model import EMBEDDING, NORMS_BEHIND
from ..models.lens import Lens
from ..spectral.features import FEATURE_MAPS

_KNOWN = FEATURE_MAPS["identity"]
_SAMPLE = 512
_PROBE_TOKENS = 12
_PREDICTIONS = 16


def model_identity(lens: Lens) -> dict[str, Any]:
    """What the model is: a digest of a sample of every one of its weights, and some of its predictions.

    The predictions are log-probabilities of a few tokens after fixed ones. They tell what now stands in the model
    (hooks, another edit) and is in no weight.
    """
    digest = hashlib.sha256()
    for name, weights in lens.all_weights():
        flat = weights.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE]
        digest.update(f"{name} {tuple(weights.shape)}".encode())
        digest.update(sample.double().cpu().numpy().tobytes())
    tokens = torch.arange(min(_PROBE_TOKENS, lens.n_ctx, lens.d_vocab))[None]
    with torch.no_grad():
        predicted = lens.forward(tokens, torch.ones_like(tokens))[0, -1].float().log_softmax(-1)
    some = predicted[:: max(1, len(predicted) // _PREDICTIONS)][:_PREDICTIONS]
    # What the check measured is rounding, which is no part of what a model is; where norms stand and what the embedding
    # holds, earlier journals do not state.
    record = {name: value for name, value in lens.record.items() if name not in ("check", NORMS_BEHIND, EMBEDDING)}
    return record | {"weights": digest.hexdigest()[:16], "predictions": some.tolist()}


def edit_identity(edit: Edit) -> dict[str, Any]:
    """What the edit is: a digest of its content, the same in every process and whatever file it came from.

    An edit that cannot be saved is told by what it says of itself, or by what it does to activations drawn at random;
    so is one with a feature map of the user's own, whose functions no file holds.
    """
    found: dict[str, Any] = {"method": type(edit).__name__, "site": edit.site, "fitted_layers": list(edit.layers)}
    if isinstance(edit, SavedEdit):
        found["sha256"] = edit.digest
        if isinstance(edit, ActivationEdit) and getattr(edit, "feature", _KNOWN).name in FEATURE_MAPS:
            return found
    if not isinstance(edit, ActivationEdit):
        # Without the addresses of objects, which every process has its own of.
        return found | {"options": re.sub(r" at 0x[0-9a-f]+", "", repr(edit))}
    units, width = edit.shape
    probe = edit.at.from_units(torch.randn(4, units, width, generator=torch.Generator().manual_seed(0)))
    digest = hashlib.sha256()
    for layer in edit.layers:
        for combine in edit.combines:
            digest.update(edit(probe, layer, combine=combine).double().cpu().numpy().tobytes())
    return found | {"effect_on_a_probe": digest.hexdigest()[:16]}
