"""Which heads carry an edit's effect (docs/method.md 9).

An edit of an MLP or of the residual stream touches no head. Heads read what it changed and carry that on; `direct` and
`patching` measure this between the unedited and the edited run. An edit at site `z` is made of one edit for each head,
and the methods that tell layers apart tell these apart as well.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer, as_number
from ..edits.base import Edit
from ..edits.where import LayerChoice, Positions, Strength
from ..errors import InputError
from ..measure.effects import checked_controls
from ..texts.items import Contrast
from .direct import direct_contributions
from .edges import ALL, PATTERN
from .games import Game, sampling_errors
from .integral import Split, displaced, outside_inference_mode, path_contributions
from .layers import METHODS as LAYER_METHODS
from .patching import METHODS as PATCHING_METHODS
from .patching import Patched, all_heads, check_z, patched
from .path_patching import patched_edges
from .results import HeadContributions
from .study import Study, activation_edit, measured_with, with_control

# Sufficiency of a head of which only one thing is that of the edited run, and by which way that comes.
PARTS = {"pattern": PATTERN, "value": "v"}
METHODS = ("direct", *PATCHING_METHODS, *PARTS)
SAMPLE = 16


@outside_inference_mode
def head_contributions(
    model: Any,
    edit: Edit,
    contrasts: Iterable[Contrast],
    method: str = "direct",
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    batch_size: int = 16,
    prepend_bos: bool = True,
    tolerance: float | None = None,
    sample: int = SAMPLE,
    permutations: int = 64,
    seed: int = 0,
    control: Iterable[Edit] = (),
    progress: bool = False,
) -> HeadContributions:
    """Contribution of each head of the model to the effect on contrasts (docs/method.md 9).

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
            - "pattern", "value": sufficiency of the head's z where its attention pattern alone, or what it moves alone,
              is that of the edited run; what sufficiency has beyond their sum they do together, unless heads of that
              layer are edited themselves (site `z`), which neither of the two is;
            - "gradient": first-order estimate of sufficiency, all heads from one backward pass;
            - for an edit at site `z`, "path", "shapley", "leave_one_out" and "only_one" as in `layer_contributions`,
              with a strength for each head; heads of layers that are not edited contribute 0.
        layers, strength, combine, positions: as in `applied`.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        tolerance: for "direct" the largest relative error of the identities that are checked, by default 1e-4, and
            0.03 for a model in half precision; for "path" as in `layer_contributions`.
        sample: for "gradient": `details` gives its correlation to exact sufficiency on this many heads drawn at
            random; 0 for none.
        permutations: for "shapley", as in `layer_contributions`.
        seed: of the sample and the permutations.
        control: edits to measure in the same way beside this one, such as `sl.permuted` or `sl.randomised` ones.
        progress: show a progress bar; "direct" and "path" have none.

    Returns:
        Values by layer and head, with those of every contrast (`item_values`); with "direct" also everything that is no
        head (`others`).

    Raises:
        InputError: an unknown method, one for edits at site `z` with an edit elsewhere, an edit that is not of
            activations, examples in front of what the model reads, or a control edit of another site or without one of
            the layers.
        DemonstrationError: with "direct", target and foil of a contrast begin with the same token, or a completion
            changes the tokens of its prompt.
        UnsupportedModelError: an identity that the method rests on does not hold on this model; names the layer and
            by how much.
        Otherwise as `effect`.

    Warns:
        UserWarning: "path" did not close to the tolerance; names the error.
    """
    edit, control = activation_edit(model, edit, "head_contributions"), checked_controls(control)
    known = METHODS + (LAYER_METHODS if edit.at.per_head else ())
    if method not in known:
        only = f" for an edit at site {edit.site!r}" if method in LAYER_METHODS else ""
        raise InputError(f"unknown method {method!r}{only}: expected one of {', '.join(known)}")
    sample, seed = as_integer(sample, "sample", least=0), as_integer(seed, "seed")
    permutations = as_integer(permutations, "permutations", least=1)
    tolerance = None if tolerance is None else as_number(tolerance, "tolerance", least=0.0)
    common: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos, "progress": progress}
    study = Study.of(model, edit, contrasts, layers, strength, combine, positions, **common)
    if method == "direct":
        return direct_contributions(study, tolerance, control)
    if method in PATCHING_METHODS:
        return patching_contributions(study, {method: control}, sample, seed)[method]
    if method in PARTS:
        return part_contributions(study, method, control)
    if method == "path":
        return path_contributions(study, {by_head: control}, tolerance)[0]

    def measure(one: Study) -> list[HeadContributions]:
        values, details = Game.of(one, range(one.lens.n_heads)).values(method, permutations=permutations, seed=seed)
        items = rearrange(values, "contrasts (layer head) -> contrasts layer head", head=one.lens.n_heads)
        errors = sampling_errors(details)
        if errors is not None:
            by_layer = rearrange(errors, "(layer head) -> 1 layer head", head=one.lens.n_heads)
            errors = _everywhere(one, by_layer)[0]
        return [
            HeadContributions(method, _everywhere(one, items), one.effects, details=details, sampling_errors=errors)
        ]

    return measured_with(study, control, measure)[0]


def part_contributions(study: Study, method: str, control: Sequence[Edit]) -> HeadContributions:
    """What each head does with the edited run's pattern, or its values, alone."""
    check_z(study)

    def measure(one: Study) -> list[HeadContributions]:
        items = patched_edges(one, [(ALL, *head, PARTS[method]) for head in all_heads(one.lens)])
        by_layer = rearrange(items, "contrasts (layer head) -> contrasts layer head", head=one.lens.n_heads)
        return [HeadContributions(method, by_layer, one.effects)]

    return measured_with(study, control, measure)[0]


def by_head(study: Study) -> Split:
    """The path integral by head, of an edit at site `z`."""

    def result(items: list[Tensor], details: dict[str, Any]) -> HeadContributions:
        of_heads = rearrange(items, "layer contrasts head -> contrasts layer head")
        return HeadContributions("path", _everywhere(study, of_heads), study.effects, details=details)

    return Split(lambda slope: reduce(displaced(study, slope), "batch pos head d -> batch head", "sum"), result)


def _everywhere(
    study: Study, items: Float[Tensor, "contrasts layers heads"]
) -> Float[Tensor, "contrasts n_layers n_heads"]:
    """Values of the edited layers' heads among those of all layers, which contribute 0."""
    found = torch.zeros(len(items), study.lens.n_layers, study.lens.n_heads, dtype=items.dtype)
    found[:, list(study.layers)] = items
    return found


def patching_contributions(
    study: Study, methods: Mapping[str, Sequence[Edit]], sample: int = SAMPLE, seed: int = 0
) -> dict[str, HeadContributions]:
    """`head_contributions` by several patching methods, each with its control edits; the clean runs are shared."""
    for control in methods.values():
        study.check_control(control)
    heads = all_heads(study.lens)
    found = patched(study, methods, heads)
    results = {}
    for method, (own, *controls) in found.items():
        result = _result(study, method, own)
        results[method] = with_control(result, [_result(study, method, one) for one in controls])
    if "gradient" in methods and sample > 0:
        order = torch.randperm(len(heads), generator=torch.Generator().manual_seed(seed))
        drawn = order[:sample].sort().values.tolist()
        if "sufficiency" in found:
            exact = found["sufficiency"][0].items[:, drawn]
        else:
            exact = patched(study, {"sufficiency": ()}, [heads[i] for i in drawn])["sufficiency"][0].items
        details = _agreement([heads[i] for i in drawn], found["gradient"][0].items[:, drawn].mean(0), exact.mean(0))
        results["gradient"] = replace(results["gradient"], details=details)
    return results


def _result(study: Study, method: str, one: Patched) -> HeadContributions:
    items = rearrange(one.items, "contrasts (layer head) -> contrasts layer head", head=study.lens.n_heads)
    return HeadContributions(method, items, one.effects)


def _agreement(
    heads: list[tuple[int, int]], estimated: Float[Tensor, " heads"], exact: Float[Tensor, " heads"]
) -> dict[str, Any]:
    """How the first-order estimate stands beside the exact values of some heads."""
    both = torch.stack([estimated, exact])
    # Undefined for a single head, or where all values are the same.
    correlation = torch.corrcoef(both)[0, 1].item() if len(heads) > 1 and (both.std(1) > 0).all() else float("nan")
    return {
        "sampled_heads": heads,
        "estimated": estimated.tolist(),
        "sufficiency": exact.tolist(),
        "correlation": correlation,
    }
