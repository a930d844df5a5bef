"""Edits that change activations: x + α (edited − x) at one site of some layers (docs/method.md 3.2)."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import Scalar, as_integer, as_strength
from .._support.saturation import saturate, widened
from ..errors import InputError, MismatchError
from ..models.check import refuse_site
from ..models.hooks import HookFunction
from ..models.language_model import LanguageModel
from ..models.lens import Lens
from ..models.plain_model import PlainModel, host
from ..models.sites import Site, unit_keys
from ..models.standing import Change
from ..models.token_positions import Positions, acting, check_positions
from .base import Edit
from .where import LayerChoice, Strength, Where

# Maps activations of all units, and a strength, to edited ones.
Arithmetic = Callable[[Tensor, float | Tensor], Tensor]


class ActivationEdit(Edit):
    """A change of activations at one site of some layers, proportional to its strength: x + α (edited − x)."""

    of_activations: ClassVar[bool] = True

    @property
    def at(self) -> Site:
        """The site that it acts at, as a value that knows how activations are laid out there."""
        return Site.of(self.site)

    def unit_keys(self, layer: int) -> list[Any]:
        """What the units of a layer are called in `ranks`: the layer, or (layer, head) where heads are edited."""
        return unit_keys(self.site, layer, self.shape[0])

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(units per layer, width of a unit)."""

    @abstractmethod
    def arithmetic(self, layer: int, combine: str) -> Arithmetic:
        """The arithmetic of the edit at one layer and nothing else: it runs at every token of every edited layer.

        It holds tensors of the layer and not its number, so that a compiler makes one graph for all layers.

        Args:
            layer: one of `layers`.
            combine: one of `combines`.

        Returns:
            A function of x, float32 or float64 of shape (*batch, units, d), and the strength, a finite number or a
            tensor that broadcasts to (*batch, units). It gives the edited activations, of the shape and dtype of x;
            infinities in it become the largest finite numbers.
        """

    def per_unit(self, strength: float | Tensor) -> float | Tensor:
        """A strength with the units as its last axis, which only site `z` has already."""
        return strength[..., None] if isinstance(strength, Tensor) and not self.at.per_head else strength

    def __call__(
        self, x: Float[Tensor, "..."], layer: SupportsIndex, strength: Scalar = 1.0, combine: str | None = None
    ) -> Float[Tensor, "..."]:
        """Edit a tensor of activations; never in place.

        Args:
            x: (…, d_model), or (…, n_heads, d_head) at site `z`, in any floating dtype; computed in float32 at least.
            layer: which layer's edit.
            strength: α, any finite number; or a tensor of them that broadcasts against x without its last axis, so one
                for each token, at site `z` for each token and head; differentiable.
            combine: one of `combines`; the first of them by default.

        Returns:
            A tensor of the shape and dtype of x.

        Raises:
            InputError: a layer that there is no edit for, an unknown `combine`, a strength that is not finite or does
                not broadcast, or an x that is no floating-point tensor.
            MismatchError: x is not as wide as the edit.
        """
        at, strength, combine = self._chosen(layer, strength, combine)
        self.check_activation(x)
        return self.function(at, strength, combine)(x)

    def module(self, layer: SupportsIndex, strength: Scalar = 1.0, combine: str | None = None) -> "EditModule":
        """The edit of one layer as a module that `torch.compile` can trace whole, with gradients too.

        Args:
            layer, strength, combine: as where the edit is called.

        Returns:
            A module without parameters, which maps activations as the edit does; it raises as that for an activation.

        Raises:
            InputError: a layer that there is no edit for, an unknown `combine`, or a strength that is not finite.

        Example:
            >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
            >>> module = edit.module(1, strength=1.5)
            >>> module
            EditModule(layer=1, strength=1.5, combine='norm')
        """
        return EditModule(self, *self._chosen(layer, strength, combine))

    def _chosen(self, layer: Any, strength: Any, combine: Any) -> tuple[int, float | Tensor, str]:
        combine, at, strength = self.choose_combine(combine), as_integer(layer, "layer"), as_strength(strength)
        if at not in self.layers:
            raise InputError(f"no edit for layer {at}: expected one of {list(self.layers)}")
        return at, strength, combine

    def check_activation(self, x: Any) -> None:
        """Refuse what is no activation that the edit is for.

        Raises:
            InputError: it is no floating-point tensor.
            MismatchError: it is not as wide as the edit.
        """
        units, width = self.shape
        expected = (units, width) if self.at.per_head else (width,)
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise InputError(f"expected a tensor of floating-point activations, got {getattr(x, 'dtype', type(x))}")
        if tuple(x.shape[-len(expected) :]) != expected:
            wanted = ", ".join(map(str, expected))
            raise MismatchError(f"the edit is for activations of shape (…, {wanted}), got {tuple(x.shape)}")

    def function(self, layer: int, strength: float | Tensor, combine: str) -> Callable[[Tensor], Tensor]:
        """The map from an activation to the edited one; what does not depend on the activation is settled here."""
        site, alpha, arithmetic = self.at, self.per_unit(strength), self.arithmetic(layer, combine)

        def edited(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
            if isinstance(strength, Tensor):
                _check_broadcast(strength, x)
            computed = site.from_units(arithmetic(site.to_units(widened(x)), alpha))
            # A new tensor also where a method gives back x itself.
            return saturate(computed, x.dtype).to(x.dtype)

        return edited

    def check_model(self, model: Any) -> None:
        """Refuse a model that the edit does not fit: other layers, width, heads, or a missing site.

        Raises:
            MismatchError: naming what the edit and the model have.
            UnsupportedModelError: the model has no hook point at the site, or one whose hooks change nothing.
        """
        super().check_model(model)
        lens = host(model)
        for layer in self.layers:
            self.at.point(lens, layer)
        refuse_site(lens, self.site, self.layers)

    def check_fit(self, lens: LanguageModel) -> None:
        """Refuse other layers, width or heads.

        Raises:
            MismatchError: naming what the edit and the model have.
        """
        super().check_fit(lens)
        if self.shape != self.at.shape(lens):
            raise MismatchError(
                f"the edit is for {self.site!r} of (units, width) {self.shape}, {lens.name!r} has {self.at.shape(lens)}"
            )

    def functions(self, model: Any, where: Where) -> list[tuple[str, HookFunction]]:
        """(hook point, function of the activation) for each layer of `where`, which `check` returned."""
        lens = host(model)
        placed = {
            layer: strength.to(lens.layer_device(layer)) if isinstance(strength, Tensor) else strength
            for layer, strength in where.strengths.items()
        }
        functions: list[tuple[str, HookFunction]] = [
            (self.at.point(lens, layer), self.function(layer, strength, where.combine))
            for layer, strength in placed.items()
        ]
        if where.positions == "all":
            return functions
        return [(name, at_positions(lens, where.positions, function)) for name, function in functions]

    def choose_positions(self, positions: Positions) -> Positions:
        """A choice of positions; raises InputError where it is unknown."""
        return check_positions(positions)

    def fwd_hooks(
        self,
        model: Any,
        layers: LayerChoice | None = None,
        strength: Strength | None = None,
        combine: str | None = None,
        positions: Positions | None = None,
    ) -> list[tuple[str, Callable[..., Tensor | None]]]:
        """The edit as `fwd_hooks` for `run_with_hooks` and `hooks`, for pipelines that own their hooks.

        Arguments and errors as in `applied`. At other positions than all, the hooks need to know which tokens the model
        reads: run them within `sl.prompt_lengths`, else they refuse.
        """

        def accepting_hook(function: HookFunction) -> Callable[..., Tensor | None]:
            return lambda x, hook=None: function(x)

        functions = self.functions(model, self.check(model, layers, strength, combine, positions))
        return [(name, accepting_hook(function)) for name, function in functions]

    def changes(self, model: Any, where: Where) -> Sequence[Change]:
        """Hooks that do arithmetic only: what `check` settled is not asked again at every token."""
        lens = host(model)
        return [lens.hook(name, function) for name, function in self.functions(model, where)]


class EditModule(torch.nn.Module):
    """An edit at one layer as a module; made by `ActivationEdit.module`.

    Attributes:
        layer, strength, combine: how the edit acts.
    """

    def __init__(self, edit: ActivationEdit, layer: int, strength: float | Tensor, combine: str) -> None:
        super().__init__()
        self.layer, self.strength, self.combine = layer, strength, combine
        self._check, self._function = edit.check_activation, edit.function(layer, strength, combine)

    def forward(self, x: Tensor) -> Tensor:
        """The edited activations; never in place."""
        self._check(x)
        return self._function(x)

    def extra_repr(self) -> str:
        """What the module's repr shows."""
        return f"layer={self.layer}, strength={self.strength}, combine={self.combine!r}"


def at_positions(lens: Lens | PlainModel, positions: Positions, function: HookFunction) -> HookFunction:
    """A function of activations that leaves those at other positions as they are.

    Args:
        lens: the model whose passes say where the positions are.
        positions: the choice.
        function: whose result at one token depends on no other token.
    """

    def edited(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        where = acting(lens, positions, x)
        if not where.anywhere:
            return x
        whole = function(x)
        assert whole is not None
        return whole if where.everywhere else torch.where(where.over(x), whole, x)

    return edited


def _check_broadcast(strength: Tensor, x: Float[Tensor, "..."]) -> None:
    """Refuse strengths that are not for the tokens of this activation; looks at shapes alone.

    Raises:
        InputError: naming both shapes.
    """
    places = tuple(x.shape[:-1])
    ends = zip(strength.shape[::-1], places[::-1], strict=False)
    if strength.ndim > len(places) or any(given not in (1, held) for given, held in ends):
        raise InputError(f"strength of shape {tuple(strength.shape)} does not broadcast against {places}")
