"""What every analysis of an edit begins with, checked before any long work, and what it ends with: its control."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..edits.activation import ActivationEdit
from ..edits.base import Edit
from ..edits.where import LayerChoice, Strength
from ..errors import InputError
from ..measure.scorer import Scorer, contrast_scorer
from ..models.lens import Lens
from ..texts.items import Contrast
from .games import Game, Player
from .integral import Path
from .results import Contributions

Result = TypeVar("Result", bound=Contributions)


@dataclass(frozen=True)
class Setup:
    """An edit, the contrasts that it is measured on, and its effect on them.

    Attributes:
        layers: the chosen layers.
        effects: Δ of each contrast.
        game: whose players are the layers, or at `heads=True` their heads.
    """

    layers: tuple[int, ...]
    scorer: Scorer
    effects: Float[Tensor, " contrasts"]
    game: Game

    @property
    def path(self) -> Path:
        """The same edit for integration.

        Raises:
            InputError: it does not edit activations.
        """
        game = self.game
        edit = activation_edit(game.model, game.edit, "an integrated gradient")
        return Path(game.model, edit, self.scorer, self.layers, game.strength, game.combine)

    @classmethod
    def of(
        cls,
        model: Any,
        edit: Edit,
        contrasts: Iterable[Contrast],
        layers: LayerChoice,
        strength: Strength,
        combine: str | None,
        batch_size: int,
        prepend_bos: bool,
        *,
        heads: bool = False,
    ) -> "Setup":
        """Check the arguments, tokenise the contrasts, and measure the effect on each."""
        given = edit.check(model, layers, strength, combine, scoring=True)
        scorer = contrast_scorer(model, contrasts, batch_size=batch_size, prepend_bos=prepend_bos)
        strengths = {at: s.detach() if isinstance(s, Tensor) else s for at, s in given.items()}
        units: Sequence[int | None] = range(scorer.lens.n_heads) if heads else (None,)
        players: list[Player] = [(layer, unit) for layer in strengths for unit in units]
        game = Game(model, edit, scorer, players, strengths, combine)
        effects = game.value(game.everybody) - game.value(frozenset())
        return cls(tuple(strengths), scorer, effects, game)


def activation_edit(model: Any, edit: Edit, what: str) -> ActivationEdit:
    """The edit, for `what` needs its activations.

    Raises:
        InputError: it is a method that changes none, or examples stand in front of what the model reads, whose
            positions would be counted wrong.
    """
    if Lens.of(model).prefix_length > 0:
        raise InputError(f"{what} counts positions: expected a model without examples in front (in_context)")
    if not isinstance(edit, ActivationEdit):
        raise InputError(
            f"{what} needs an edit of activations, got {type(edit).__name__}, which acts on the {edit.site}"
        )
    return edit


def check_control(edit: Edit, control: Sequence[Edit], layers: Sequence[int]) -> None:
    """Refuse control edits that could not stand beside an edit.

    Raises:
        InputError: a control edits another site, or lacks a layer; names what it has.
    """
    for other in control:
        if other.site != edit.site or not set(layers) <= set(other.layers):
            raise InputError(
                f"a control edit is for {other.site!r} of layers {list(other.layers)}: expected {edit.site!r} and "
                f"layers {list(layers)}"
            )


def with_control(result: Result, controls: Sequence[Contributions]) -> Result:
    """The result with the values of its controls beside it; they have the same parts, as was checked before."""
    if not controls:
        return result
    return replace(result, control_values=torch.stack([control.values for control in controls]))
