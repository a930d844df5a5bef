"""Several edits in a stated order as one edit (docs/method.md 3.8)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from .._support.saturation import saturate
from ..errors import InputError
from ..models.language_model import LanguageModel
from ..models.standing import Change
from ..models.token_positions import Positions
from .activation import ActivationEdit, Arithmetic
from .base import Edit, as_edit
from .where import Defaults, LayerChoice, Strength, Where

COMPOSED = "composed"
Kind = TypeVar("Kind", bound="Several")


@dataclass(frozen=True, eq=False)
class Several:
    """Edits that act one behind the other, each as it remembers.

    Attributes:
        edits: in the order in which they act where they meet at one place.
    """

    combines: ClassVar[tuple[str, ...]] = (COMPOSED,)
    # Each of them is asked for itself.
    of_activations: ClassVar[bool] = True

    edits: tuple[Edit, ...]
    defaults: Defaults = field(default=Defaults(), kw_only=True, repr=False)

    @property
    def site(self) -> str:
        """The sites of all of them."""
        return " and ".join(dict.fromkeys(edit.site for edit in self.edits))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of all of them."""
        return tuple(sorted({layer for edit in self.edits for layer in edit.where().layers}))

    @property
    def n_layers(self) -> int | None:
        """Number of layers of the model that they are for, None where unknown."""
        return next((edit.n_layers for edit in self.edits if edit.n_layers is not None), None)

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What all of them were fitted from and chosen on."""
        own = [getattr(edit, "provenance", {}) for edit in self.edits]
        return {name: [entry for one in own for entry in one.get(name, [])] for name in ("demonstrations", "chosen_on")}

    def only(self: Kind, members: Iterable[int]) -> Kind:
        """The same with these of the edits alone, by their places, in the same order."""
        chosen = set(members)
        return replace(self, edits=tuple(edit for place, edit in enumerate(self.edits) if place in chosen))

    def check_model(self, model: Any) -> None:
        """Refuse a model that one of them does not fit."""
        for edit in self.edits:
            edit.check_model(model)

    def check_fit(self, lens: LanguageModel) -> None:
        """Refuse a model of other sizes, wherever it runs."""
        for edit in self.edits:
            edit.check_fit(lens)


class Composed(Several, Edit):  # type: ignore[misc]
    """Edits of any kinds as one: made by `composed`. Attributes as in `Several`."""

    def check_strengths(self, model: Any, where: Where, *, scoring: bool) -> None:
        """Refuse what one of them cannot do."""
        for edit in self.edits:
            edit.check_strengths(model, _share(edit, where), scoring=scoring)

    own_positions: ClassVar[bool] = True

    def settled(
        self,
        layers: LayerChoice | None = None,
        strength: Strength | None = None,
        combine: str | None = None,
        positions: Positions | None = None,
    ) -> dict[str, Any]:
        """As in `Edit`; raises InputError where positions are asked for, since each edit has its own."""
        if positions is not None:
            raise InputError("composed edits act where each remembers to: expected no positions")
        return super().settled(layers, strength, combine)

    def changes(self, model: Any, where: Where) -> Sequence[Change]:
        """What all of them change; each one's own strength is multiplied by that of the layer."""
        return [change for edit in self.edits for change in edit.changes(model, _share(edit, where))]


def _share(edit: Edit, where: Where) -> Where:
    """Where one of several edits acts, when all of them act there."""
    own = edit.where()
    return own.with_strengths(
        {layer: alpha * where.strengths[layer] for layer, alpha in own.strengths.items() if layer in where.strengths}
    )


class ComposedActivations(Several, ActivationEdit):  # type: ignore[misc]
    """Edits of activations at one site as one, which all analyses take: made by `composed`."""

    @property
    def shape(self) -> tuple[int, int]:
        """(units per layer, width of a unit)."""
        first = self.edits[0]
        assert isinstance(first, ActivationEdit)
        return first.shape

    def arithmetic(self, layer: int, combine: str) -> Arithmetic:
        """One behind the other, each at its own strength; then α of the way from x to what they make of it."""
        steps: list[tuple[Arithmetic, float | Tensor]] = []
        for edit in self.edits:
            assert isinstance(edit, ActivationEdit)
            own = edit.where()
            if layer in own.strengths:
                steps.append((edit.arithmetic(layer, own.combine), edit.per_unit(own.strengths[layer])))

        def edited(x: Tensor, strength: float | Tensor) -> Tensor:
            whole = x
            for step, alpha in steps:
                # As behind each of them where they are installed in turn.
                whole = saturate(step(whole, alpha))
            if isinstance(strength, Tensor):
                strength = strength.to(x)[..., None]
            # Not by the difference, which may overflow where both are finite.
            return (1 - strength) * x + strength * whole

        return edited


def composed(*edits: Edit) -> Composed | ComposedActivations:
    """Several edits as one, in the order in which they act (docs/method.md 3.8).

    Each acts as it remembers (`with_defaults`): its layers, strengths, way to combine and positions. Where two meet at
    one place, the second edits what the first has made.

    Args:
        edits: two or more.

    Returns:
        An edit. Edits of activations at one site and the same positions make an edit of activations again, which every
        analysis takes; its strength α goes from the unedited activation to what all of them make of it. Of others α
        multiplies each one's own strength. `sl.interactions(…, of="edits")` splits the joint effect between them.

    A composed edit is not saved: its members are. Its controls are composed of controls of the members, such as
    `sl.permuted` or `sl.randomised` ones.

    Raises:
        InputError: fewer than two, or something that is no edit.

    Example:
        >>> covariance = sl.capture(bed.model, bed.demonstrations)
        >>> both = sl.composed(sl.fit(covariance, rank=12), sl.mean_difference(covariance))
        >>> both.layers, type(both).__name__
        ((0, 1, 2), 'Composed')
    """
    given = tuple(as_edit(edit) for edit in edits)
    if len(given) < 2:
        raise InputError(f"composed takes two edits or more, got {len(given)}")
    # "answer" and "generated" are one set.
    acting = [edit.where().positions for edit in given]
    places = {(edit.site, "generated" if at == "answer" else at) for edit, at in zip(given, acting, strict=True)}
    if len(places) == 1 and all(isinstance(edit, ActivationEdit) for edit in given):
        shapes = {edit.shape for edit in given if isinstance(edit, ActivationEdit)}
        if len(shapes) > 1:
            raise InputError(f"edits of activations of several shapes, {sorted(shapes)}: they are for different models")
        ((_, positions),) = places
        return ComposedActivations(given, defaults=Defaults(positions=positions))
    return Composed(given)
