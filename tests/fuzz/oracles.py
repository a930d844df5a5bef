"""What a file that was accepted must be, looked at in other ways than the loaders do."""

import math
from typing import Any

import torch

import sea_lens as sl
from sea_lens.edits.saved import SavedEdit


def impossible_edit(edit: Any) -> str | None:
    """What is impossible about a loaded edit, None where nothing is."""
    if not isinstance(edit, SavedEdit):
        return "no edit"
    for name, tensor in edit.tensors().items():
        if not math.isfinite(tensor.double().abs().sum().item()):
            return f"{name} is not finite"
    n_layers = edit.n_layers
    if not edit.layers or min(edit.layers) < 0 or (n_layers is not None and max(edit.layers) >= n_layers):
        return f"layers {edit.layers}"
    if isinstance(edit, sl.SpectralEdit):
        return _impossible_subspaces(edit)
    if isinstance(edit, sl.ITI):
        zero = all(not edit.vectors[at][head].any() for at in edit.layers for head in range(edit.shape[0]))
        return "no heads" if zero or not edit.heads or edit.site != "z" else None
    if isinstance(edit, sl.LEACE):
        for layer, eraser in edit.erasers.items():
            x = torch.randn(3, *eraser.left.shape, dtype=eraser.left.dtype)
            once = x - eraser.erased_from(x - eraser.centre)
            twice = once - eraser.erased_from(once - eraser.centre)
            if not torch.allclose(once, twice, atol=1e-2 * float(once.abs().max()) + 1e-6):
                return f"layer {layer} erases again"
    if isinstance(edit, (sl.DirectionalAblation, sl.GeneralisedEigen, sl.AngularSteering)):
        return _impossible_steering(edit)
    if isinstance(edit, sl.LoRA) and not all(math.isfinite(loss) and loss >= 0 for loss in edit.losses):
        return "losses"
    return None


def _impossible_steering(edit: Any) -> str | None:
    units, width = edit.shape
    for layer in edit.layers:
        x = torch.randn(5, units, width, dtype=torch.float64)
        for combine in edit.combines:
            once = edit.arithmetic(layer, combine)(x, 1.0)
            twice = once if combine in ("turn",) else edit.arithmetic(layer, combine)(once, 1.0)
            if not torch.allclose(once, twice, rtol=1e-2, atol=1e-2 * float(once.abs().max()) + 1e-6):
                return f"layer {layer}: {combine} again is another edit"
            longer = isinstance(edit, sl.AngularSteering) and not torch.allclose(once.norm(dim=-1), x.norm(dim=-1))
            if longer or not once.isfinite().all():
                return f"layer {layer}: {combine} changes the norm"
    return None


def _impossible_subspaces(edit: sl.SpectralEdit) -> str | None:
    if not (edit.n is None or (type(edit.n) is int and edit.n > 0)) or edit.site not in sl.SITES:
        return f"n {edit.n}, site {edit.site}"
    if not all(0 <= value < math.inf for value in (edit.signatures or {}).values()):
        return "signatures"
    for layer in edit.layers:
        one = edit.subspaces[layer]
        sides = zip((one.keep, one.drop), (one.keep_rank, one.drop_rank), one.spectra, strict=True)
        for factor, ranks, spectrum in sides:
            values = spectrum.values
            if not (spectrum.energy.isfinite() & (spectrum.energy >= 0)).all():
                return f"layer {layer}: energy"
            for unit, rank in enumerate(ranks.tolist()):
                columns = factor[unit].double()
                gram = columns.T @ columns
                wanted = torch.diag((torch.arange(gram.shape[0]) < rank).double())
                if not 0 <= rank <= columns.shape[1] or not torch.allclose(gram, wanted, atol=1e-5):
                    return f"layer {layer}: not orthonormal"
                if (values[unit] < 0).any() or (values[unit].diff() > 0).any():
                    return f"layer {layer}: singular values"
    return None


def impossible_covariance(found: sl.CrossCovariance) -> str | None:
    """What is impossible about loaded sums."""
    if type(found.n) is not int or found.n < 0 or found.site not in sl.SITES:
        return f"n {found.n}, site {found.site}"
    if list(found.layers) != sorted(set(found.layers)) or min(found.layers) < 0:
        return f"layers {found.layers}"
    shape = (found.units, found.d)
    most = max(abs(end) for end in found.feature.range) * (1 + 1e-6)
    for layer in found.layers if found.n else ():
        means, omegas = found.means(layer), found.omega(layer)
        if any(tuple(x.shape) != shape for x in means) or any(tuple(x.shape) != (*shape, found.d) for x in omegas):
            return f"layer {layer}: shapes"
        largest = max(x.abs().max().item() for x in means)
        if not largest < math.inf or (math.isfinite(most) and largest > most):
            return f"layer {layer}: means"
    return None


def impossible_evaluation(found: sl.Evaluation) -> str | None:
    """What is impossible about loaded results: here, accuracies that are not the mean of the items'."""
    items = [float(item["accuracy"]) for item in found.items]
    mean = math.fsum(items) / len(items)
    return None if abs(found.scores["accuracy"] - mean) < 1e-9 else "accuracy"
