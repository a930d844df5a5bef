"""What every analysis begins with, made and checked once: an edit, where it acts, and the contrasts it is measured on.

Texts are tokenised once, the unedited and the edited run are measured once, and so is every run with some parts of the
edit switched on. The controls of an analysis are other edits put in the place of this one (`Study.under`).
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.progress import tracked
from ..edits.activation import ActivationEdit
from ..edits.base import Edit, as_edit
from ..edits.seen import warn_of_overlap
from ..edits.where import LayerChoice, Positions, Strength, Where
from ..errors import InputError
from ..measure.effects import Effect, control_places, effect_between
from ..measure.scorer import EncodedContrasts, Scorer, contrast_values
from ..models.lens import Lens
from ..texts.demonstrations import Contrasts
from ..texts.items import Contrast
from .base import Contributions

Result = TypeVar("Result", bound=Contributions)

Part: TypeAlias = tuple[int, int | None]
"""(layer, head) of an edit; the head is None where the whole layer is meant."""


@dataclass(frozen=True, eq=False)
class Study:
    """An edit on contrasts, ready for any analysis.

    Attributes:
        model: a TransformerLens model.
        edit: the edit.
        where: the layers that it acts on, and how; without gradients.
        combine: as the user asked for it.
        contrasts: as tokens.
        scorer: of their targets and foils.
        batch_size: sequences at a time.
        progress: whether progress bars are shown.
    """

    model: Any
    edit: Edit
    where: Where
    combine: str | None
    contrasts: EncodedContrasts
    scorer: Scorer
    batch_size: int
    progress: bool
    # Shared by all studies of the same contrasts; runs the model when it is first called.
    _unedited: Callable[[], Float[Tensor, " completions"]] = field(repr=False)
    _runs: dict[frozenset[Part], Float[Tensor, " contrasts"]] = field(default_factory=dict, repr=False)
    _others: dict[int, "Study"] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        model: Any,
        edit: Edit,
        contrasts: Iterable[Contrast],
        layers: LayerChoice | None = None,
        strength: Strength | None = None,
        combine: str | None = None,
        positions: Positions | None = None,
        *,
        batch_size: int = 16,
        prepend_bos: bool = True,
        progress: bool = False,
    ) -> "Study":
        """Check the arguments and tokenise the contrasts; arguments and errors as in `effect`."""
        where = as_edit(edit).check(model, layers, strength, combine, positions, scoring=True)
        detached = {at: s.detach() if isinstance(s, Tensor) else s for at, s in where.strengths.items()}
        lens, contrasts = Lens.of(model), Contrasts.of(contrasts)
        warn_of_overlap(edit, [one.prompt for one in contrasts], "contrasts")
        encoded = EncodedContrasts.of(lens, contrasts, prepend_bos)
        scorer = encoded.scorer(lens, batch_size)
        unedited = functools.cache(scorer.log_probs)
        where = where.with_strengths(detached)
        return cls(model, edit, where, combine, encoded, scorer, batch_size, progress, unedited)

    @property
    def lens(self) -> Lens:
        """The model as sea_lens sees it."""
        return self.scorer.lens

    @property
    def layers(self) -> tuple[int, ...]:
        """The chosen layers."""
        return self.where.layers

    @property
    def unedited_log_probs(self) -> Float[Tensor, " completions"]:
        """Log-probabilities of targets and foils in turn without the edit."""
        return self._unedited()

    @functools.cached_property
    def edited_log_probs(self) -> Float[Tensor, " completions"]:
        """Log-probabilities of targets and foils in turn under the whole edit."""
        return self._log_probs(self.where)

    @functools.cached_property
    def effect(self) -> Effect:
        """What `sl.effect` measures."""
        return effect_between(self.unedited_log_probs, self.edited_log_probs)

    @functools.cached_property
    def effects(self) -> Float[Tensor, " contrasts"]:
        """Δ of each contrast."""
        return contrast_values(self.edited_log_probs) - contrast_values(self.unedited_log_probs)

    def with_parts(self, parts: frozenset[Part]) -> Float[Tensor, " contrasts"]:
        """The contrast of each item with only these parts of the edit on; each set of parts is run once."""
        if parts not in self._runs:
            if not parts:
                log_probs = self.unedited_log_probs
            elif parts in ({(layer, None) for layer in self.layers}, self._all_heads):
                log_probs = self.edited_log_probs
            else:
                log_probs = self._log_probs(self.where.with_strengths(self._strengths(parts)))
            self._runs[parts] = contrast_values(log_probs)
        return self._runs[parts]

    def with_each(self, some: Sequence[frozenset[Any]], what: str) -> dict[frozenset[Any], Float[Tensor, " contrasts"]]:
        """The contrast of each item with each of these sets of parts on; `what` names the progress bar."""
        return {parts: self.with_parts(parts) for parts in tracked(some, what, len(some), show=self.progress)}

    @property
    def _all_heads(self) -> set[Part]:
        return {(layer, head) for layer in self.layers for head in range(self.lens.n_heads)}

    def _log_probs(self, where: Where) -> Float[Tensor, " completions"]:
        with self.edit.put(self.model, where):
            return self.scorer.log_probs()

    def _strengths(self, parts: frozenset[Part]) -> dict[int, float | Tensor]:
        strengths: dict[int, float | Tensor] = {}
        for layer, head in sorted(parts, key=lambda part: (part[0], part[1] or 0)):
            whole = self.where.strengths[layer]
            if head is None:
                strengths[layer] = whole
            else:
                on = torch.zeros(self.lens.n_heads, dtype=torch.float64)
                on[head] = 1.0
                strengths[layer] = strengths.get(layer, 0.0) + on * whole
        return strengths

    def activation_edit(self, what: str) -> ActivationEdit:
        """The edit, which must be one of activations; raises as the function `activation_edit`, naming `what`."""
        return activation_edit(self.model, self.edit, what)

    def under(self, other: Edit) -> "Study":
        """The same contrasts and places under another edit, checked once however often it is asked for.

        Where the user asked for no way to combine, another takes the edit's, or its own where it does not know that.
        """
        if id(other) not in self._others:
            where = other.check(self.model, **control_places(other, self.where, self.combine), scoring=True)
            self._others[id(other)] = replace(self, edit=other, where=where, progress=False, _runs={}, _others={})
        return self._others[id(other)]

    def picked(self, places: Sequence[int]) -> "Study":
        """The same edit on some of the contrasts."""
        encoded = self.contrasts.picked(places)
        scorer = encoded.scorer(self.lens, self.batch_size)
        unedited = functools.cache(scorer.log_probs)
        return replace(self, contrasts=encoded, scorer=scorer, _unedited=unedited, _runs={}, _others={})

    def check_control(self, control: Sequence[Edit]) -> None:
        """Refuse control edits that could not stand beside the edit, all of them before anything is measured.

        Raises:
            InputError: a control edits another site, or lacks a layer; names what it has.
            Otherwise as `Edit.applied` for each of them.
        """
        check_control_places(self.edit, self.layers, control)
        for other in control:
            self.under(other)


def check_control_places(edit: Edit, layers: Sequence[int], control: Sequence[Edit]) -> None:
    """Refuse control edits that could not stand beside an edit; errors as in `Study.check_control`."""
    for other in control:
        if other.site != edit.site or not set(layers) <= set(other.layers):
            raise InputError(
                f"a control edit is for {other.site!r} of layers {list(other.layers)}: expected {edit.site!r} "
                f"and layers {list(layers)}"
            )


def activation_edit(model: Any, edit: Edit, what: str) -> ActivationEdit:
    """The edit, which must be one of activations, since `what` reads them by position.

    Raises:
        InputError: the edit changes no activations, or examples stand in front of what the model reads, so that
            positions would be counted wrong; names `what`.
    """
    if Lens.of(model).prefix_length > 0:
        raise InputError(f"{what} counts positions: expected a model without examples in front (in_context)")
    given = as_edit(edit)
    if not isinstance(given, ActivationEdit):
        raise InputError(
            f"{what} needs an edit of activations, got {type(edit).__name__}, which acts on the {edit.site}"
        )
    return given


def measured_with(study: Study, control: Sequence[Edit], measure: Callable[[Study], Sequence[Result]]) -> list[Result]:
    """Results of a measurement, each with the values that the same measurement gives of its controls."""
    study.check_control(control)
    results = measure(study)
    beside = [measure(study.under(other)) for other in control]
    return [with_control(result, [of[place] for of in beside]) for place, result in enumerate(results)]


def with_control(result: Result, controls: Sequence[Contributions]) -> Result:
    """The result with the values of its controls, which have the same parts, beside it."""
    if not controls:
        return result
    effects = torch.stack([control.item_effects.mean() for control in controls])
    values = torch.stack([control.values for control in controls])
    return replace(result, control_values=values, control_effects=effects)
