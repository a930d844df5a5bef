"""Which heads carry an edit's effect (SEA.md section 7, Heads).

An edit of an MLP or of the residual stream touches no head; heads read what it changed and carry that on: `direct`,
and `patching` between the edited and the unedited run. An edit at site `z` is made of one edit for each head, and there
the methods that tell layers apart tell heads apart.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer
from ..edits.activation import ActivationEdit
from ..edits.base import Edit
from ..edits.where import LayerChoice, Strength
from ..errors import InputError
from ..measure.scorer import contrast_scorer
from ..models.lens import Lens
from ..texts.demonstrations import Contrasts
from ..texts.items import Contrast
from .direct import direct_contributions
from .integral import displaced, outside_inference_mode
from .layers import METHODS as LAYER_METHODS
from .patching import METHODS as PATCHING_METHODS
from .patching import Patcher
from .results import HeadContributions
from .setup import Setup, activation_edit, check_control, with_control

METHODS = ("direct", *PATCHING_METHODS)


@outside_inference_mode
def head_contributions(
    model: Any,
    edit: Edit,
    contrasts: Iterable[Contrast],
    method: str = "direct",
    layers: LayerChoice = "all",
    strength: Strength = 1.0,
    combine: str | None = None,
    *,
    batch_size: int = 16,
    prepend_bos: bool = True,
    tolerance: float | None = None,
    sample: int = 16,
    permutations: int = 64,
    seed: int = 0,
    control: Sequence[Edit] = (),
    progress: bool = False,
) -> HeadContributions:
    """Contribution of each head of the model to the effect on contrasts.

    Args:
        model: a TransformerLens model.
        edit: the edit.
        contrasts: what the effect is measured on.
        method:
            - "direct": change of what the head itself writes, in logits: the logit difference of the first tokens of
              target and foil at the last prompt position, before any soft cap, not the summed log-probabilities that
              `effect` reports. With everything that is no head it sums to the change of that difference;
            - "sufficiency": effect on the unedited run of giving it the head's z of the edited run, in nats;
            - "necessity": what of the effect is lost when the edited run gets the head's z of the unedited run;
            - "gradient": first-order estimate of sufficiency, all heads from one backward pass;
            - for an edit at site `z`, "path", "shapley", "leave_one_out" and "only_one" as in `layer_contributions`,
              with a strength for each head; heads of layers that are not edited contribute 0.
        layers, strength, combine: as in `applied`.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        tolerance: for "direct" the largest relative error of the identities that are checked, by default 1e-4, and
            0.03 for a model in half precision; for "path" as in `layer_contributions`.
        sample: for "gradient": `details` gives its correlation to exact sufficiency on this many heads drawn at
            random; 0 for none.
        permutations: for "shapley", as in `layer_contributions`.
        seed: of the sample and the permutations.
        control: edits to measure in the same way beside this one, such as `sl.permuted` or `sl.randomised` ones.
        progress: show a progress bar.

    Returns:
        Values by layer and head, with each contrast's share; with "direct" also everything that is no head.

    Raises:
        InputError: an unknown method, one for edits at site `z` with an edit elsewhere, or an edit that is not of
            activations.
        DemonstrationError: target and foil of a contrast begin with the same token ("direct").
        UnsupportedModelError: an identity that the method rests on does not hold on this model; names the layer and
            by how much.
        Otherwise as `effect`.
    """
    edit = activation_edit(model, edit, "head_contributions")
    known = METHODS + (LAYER_METHODS if edit.at.per_head else ())
    if method not in known:
        only = f" for an edit at site {edit.site!r}" if method in LAYER_METHODS else ""
        raise InputError(f"unknown method {method!r}{only}: expected one of {', '.join(known)}")
    contrasts = Contrasts.of(contrasts)
    sample, seed = as_integer(sample, "sample", least=0), as_integer(seed, "seed")
    permutations = as_integer(permutations, "permutations", least=1)
    check_control(edit, control, edit.choose_layers(layers))
    if method == "direct":
        result = direct_contributions(
            model,
            edit,
            contrasts,
            layers,
            strength,
            combine,
            batch_size=batch_size,
            prepend_bos=prepend_bos,
            tolerance=tolerance,
        )
    elif method in PATCHING_METHODS:
        functions = edit.functions(model, layers=layers, strength=strength, combine=combine)
        scorer = contrast_scorer(model, contrasts, batch_size=batch_size, prepend_bos=prepend_bos)
        result = _patching(Patcher(scorer, functions, batch_size), method, sample, seed, progress)
    else:
        setup = Setup.of(model, edit, contrasts, layers, strength, combine, batch_size, prepend_bos, heads=True)
        result = _edited_heads(
            setup,
            edit,
            method,
            combine,
            tolerance,
            permutations,
            seed,
            progress,
        )
    return with_control(
        result,
        [
            head_contributions(
                model,
                other,
                contrasts,
                method,
                edit.choose_layers(layers),
                strength,
                combine,
                batch_size=batch_size,
                prepend_bos=prepend_bos,
                tolerance=tolerance,
                sample=0,
                permutations=permutations,
                seed=seed,
            )
            for other in control
        ],
    )


def _patching(patcher: Patcher, method: str, sample: int, seed: int, progress: bool) -> HeadContributions:
    heads = patcher.heads
    if method != "gradient":
        items, effects = patcher.patched(method, heads, progress=progress)
        return HeadContributions(method, _by_head(items, patcher.lens), effects)
    items, effects = patcher.gradients(progress=progress)
    result = HeadContributions(method, _by_head(items, patcher.lens), effects)
    if sample == 0:
        return result
    drawn = torch.randperm(len(heads), generator=torch.Generator().manual_seed(seed))[:sample].sort().values.tolist()
    exact = patcher.patched("sufficiency", [heads[i] for i in drawn], progress=progress)[0].mean(0)
    estimated = items[:, drawn].mean(0)
    both = torch.stack([estimated, exact])
    # Undefined for a single head, or where all values are the same.
    correlation = torch.corrcoef(both)[0, 1].item() if len(drawn) > 1 and (both.std(1) > 0).all() else float("nan")
    details = {
        "sampled_heads": [heads[i] for i in drawn],
        "estimated": estimated.tolist(),
        "sufficiency": exact.tolist(),
        "correlation": correlation,
    }
    return replace(result, details=details)


def _by_head(items: Float[Tensor, "contrasts heads"], lens: Lens) -> Float[Tensor, "contrasts n_layers n_heads"]:
    return rearrange(items, "contrasts (layer head) -> contrasts layer head", head=lens.n_heads)


def _edited_heads(
    setup: Setup,
    edit: ActivationEdit,
    method: str,
    combine: str | None,
    tolerance: float | None,
    permutations: int,
    seed: int,
    progress: bool,
) -> HeadContributions:
    """The layer methods for an edit at site `z`, with the heads as players."""
    lens = setup.scorer.lens
    if method == "path":
        layers, details = setup.path.integrate(
            lambda slope: reduce(displaced(edit, slope, combine), "batch pos head d -> batch head", "sum"),
            setup.effects,
            tolerance,
        )
        items = rearrange(layers, "layer contrasts head -> contrasts layer head")
    else:
        values, details = setup.game.values(method, permutations=permutations, seed=seed, progress=progress)
        items = rearrange(values, "contrasts (layer head) -> contrasts layer head", head=lens.n_heads)
    everywhere = torch.zeros(len(items), lens.n_layers, lens.n_heads, dtype=items.dtype)
    everywhere[:, list(setup.layers)] = items
    return HeadContributions(method, everywhere, setup.effects, details=details)
