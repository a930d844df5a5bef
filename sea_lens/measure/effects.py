"""The effect of an edit on contrasts (docs/method.md 6.2)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import counted
from .._support.significance import rank_p_values
from .._support.statistics import Interval, bootstrap
from ..edits.base import Edit, as_edit
from ..edits.seen import warn_of_overlap
from ..edits.where import LayerChoice, Positions, Strength, Where
from ..errors import InputError
from ..texts.demonstrations import Contrasts
from ..texts.items import Contrast
from .scorer import Scorer, contrast_scorer

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Effect:
    """What an edit does to contrasts; everything in nats but the masses, which are probabilities.

    Attributes:
        before_items, after_items: log p(target) − log p(foil) of each contrast, unedited and edited.
        before_mass, after_mass: p(target) + p(foil) of each contrast. An edit that moves the contrast but leaves
            little mass on the two answers has broken the model rather than changed its mind.
        interval: paired interval of the effect over contrasts (docs/method.md 6.7).
        control_effects: mean effect of each control edit (`control=`), None where there was none.
    """

    before_items: Float[Tensor, " contrasts"]
    after_items: Float[Tensor, " contrasts"]
    before_mass: Float[Tensor, " contrasts"]
    after_mass: Float[Tensor, " contrasts"]
    interval: Interval
    control_effects: Float[Tensor, " draws"] | None = None

    @property
    def before(self) -> float:
        """Mean contrast of the unedited model."""
        return self.before_items.mean().item()

    @property
    def after(self) -> float:
        """Mean contrast of the edited model."""
        return self.after_items.mean().item()

    @property
    def effect(self) -> float:
        """Δ: after − before."""
        return self.after - self.before

    @property
    def items(self) -> Float[Tensor, " contrasts"]:
        """Δ of each contrast."""
        return self.after_items - self.before_items

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the effect among those of the control edits (docs/method.md 6.8); NaN without any."""
        return math.nan if self.control_effects is None else effect_p_value(self.effect, self.control_effects)

    def to_frame(self) -> "pd.DataFrame":
        """One row per contrast: before, after, effect, mass_before, mass_after."""
        import pandas as pd

        return pd.DataFrame(
            {
                "before": self.before_items.numpy(),
                "after": self.after_items.numpy(),
                "effect": self.items.numpy(),
                "mass_before": self.before_mass.numpy(),
                "mass_after": self.after_mass.numpy(),
            }
        ).rename_axis("contrast")

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Distribution of the contrast before and after, and where the controls bring its mean."""
        from ..plots.edits import before_after

        controls = None if self.control_effects is None else self.control_effects.numpy()
        return before_after(self.before_items.numpy(), self.after_items.numpy(), self.interval, controls, ax=ax)

    def __str__(self) -> str:
        beside = ""
        if self.control_effects is not None:
            least, most = self.control_effects.min(), self.control_effects.max()
            beside = f", {len(self.control_effects)} controls {least:+.3f} to {most:+.3f}, p {self.p_value:.2g}"
        return (
            f"effect {self.interval} nats over {counted(len(self.items), 'contrast')}{beside} "
            f"(before {self.before:+.3f}, after {self.after:+.3f}; mass on the two answers "
            f"{self.before_mass.mean():.2f} → {self.after_mass.mean():.2f})"
        )


def effect(
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
    seed: int = 0,
    control: Iterable[Edit] = (),
) -> Effect:
    """Mean of log p(target | prompt) − log p(foil | prompt) over contrasts, edited minus unedited (docs/method.md 6.2).

    Args:
        model: a TransformerLens model. Its own hooks, if any, stay in both runs.
        edit: the edit.
        contrasts: at least one.
        layers, strength, combine, positions: as in `applied`.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        seed: of the interval's draws.
        control: edits to measure beside this one, such as `sl.permuted` gives; the effect then has a p-value.

    Returns:
        Each contrast before and after in nats, the mass on its two answers, and the paired interval of the mean effect.

    Raises:
        MismatchError: the edit is for another model.
        InputError: unknown layers, `combine` or positions, or an edit that leaves some tokens without a probability.
        DemonstrationError: no contrasts, a text that is too long, or a completion that adds no token.
        ActivationError: a log-probability that is NaN or infinite.

    Warns:
        UserWarning: contrasts ask what the edit was fitted from or chosen on; says how many.

    Example:
        >>> bias = bed.behaviours["bias"]
        >>> edit = sl.fit(sl.capture(bed.model, bias.demonstrations, site="resid_post"), rank=8)
        >>> found = sl.effect(bed.model, edit, bias.contrasts["test"])
        >>> round(found.effect, 1), found.interval.excludes(0.0)
        (0.4, True)
    """
    where = as_edit(edit).check(model, layers, strength, combine, positions, scoring=True)
    control = checked_controls(control)
    places = [control_places(one, where, combine) for one in control]
    for one, place in zip(control, places, strict=True):
        one.check(model, **place, scoring=True)
    contrasts = Contrasts.of(contrasts)
    warn_of_overlap(edit, [one.prompt for one in contrasts], "contrasts")
    scorer = contrast_scorer(model, contrasts, batch_size=batch_size, prepend_bos=prepend_bos)
    unedited = scorer.log_probs()
    with edit.put(model, where):
        edited = scorer.log_probs()
    found = effect_between(unedited, edited, seed=seed)
    beside = [effect_from(scorer, unedited, model, one, **place) for one, place in zip(control, places, strict=True)]
    return (
        replace(found, control_effects=torch.tensor([one.effect for one in beside], dtype=torch.float64))
        if beside
        else found
    )


def checked_controls(control: Any) -> list[Edit]:
    """Control edits as a list.

    Raises:
        InputError: it is none, or holds something else.
    """
    if isinstance(control, Edit) or not isinstance(control, Iterable):
        raise InputError(f"control: expected a list of edits, got {type(control).__name__}")
    listed = list(control)
    if others := [one for one in listed if not isinstance(one, Edit)]:
        raise InputError(f"control: expected a list of edits, got {type(others[0]).__name__} in it")
    return listed


def control_places(control: Edit, where: Where, combine: str | None) -> dict[str, Any]:
    """Arguments of `applied` that put a control where the edit stands, combined alike where it can be.

    Args:
        control: stands beside the edit.
        where: of the edit.
        combine: as the user asked for it.
    """
    if combine is None and where.combine in control.combines:
        combine = where.combine
    positions = None if control.own_positions else where.positions
    return {"layers": where.layers, "strength": where.strengths, "combine": combine, "positions": positions}


def effect_p_value(effect: float, controls: Float[Tensor, " draws"]) -> float:
    """Two-sided rank of an effect among those of control edits."""
    values, drawn = np.array([effect]), controls.double().numpy()[:, None]
    return float(rank_p_values(values, drawn)[0])


def effect_from(
    scorer: Scorer,
    unedited: Float[Tensor, " completions"],
    model: Any,
    edit: Edit,
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    seed: int = 0,
) -> Effect:
    """`effect` with the unedited run already done, for trying many edits on the same contrasts."""
    with edit.applied(model, layers, strength, combine, positions):
        edited = scorer.log_probs()
    return effect_between(unedited, edited, seed=seed)


def effect_between(
    unedited: Float[Tensor, " completions"], edited: Float[Tensor, " completions"], *, seed: int = 0
) -> Effect:
    """The effect from the log-probabilities of targets and foils in turn, as `contrast_scorer` gives them."""
    before, after = (rearrange(x, "(contrasts two) -> contrasts two", two=2) for x in (unedited, edited))
    masses = [reduce(x.exp(), "contrasts two -> contrasts", "sum") for x in (before, after)]
    before_items, after_items = before[:, 0] - before[:, 1], after[:, 0] - after[:, 1]
    interval = bootstrap((after_items - before_items).numpy(), kind="number", seed=seed)
    return Effect(before_items, after_items, masses[0], masses[1], interval)
