"""What an edit is, and how it is put into a model: for the length of a context, or until a handle is removed.

Every method (spectral, mean difference, …) is an `Edit`, so that whatever measures an edit works on all of them; those
that change activations are `ActivationEdit`s, which the analyses of activations need.
"""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from .._support.arguments import as_number
from ..errors import InputError, MismatchError, UnsupportedModelError
from ..models.check import ensure_usable
from ..models.language_model import LanguageModel
from ..models.plain_model import PlainModel, host
from ..models.standing import Change
from ..models.token_positions import Positions, check_positions, positions_name
from .in_model import Installation, warn_of_installed
from .where import Defaults, LayerChoice, Strength, Where, choose_layers, strength_of_layers

Kind = TypeVar("Kind", bound="Edit")


def as_edit(given: Any) -> "Edit":
    """What was given, which must be an edit.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(given, Edit):
        raise InputError(f"expected an edit, such as sl.load_edit reads, got {type(given).__name__}")
    return given


class Edit(ABC):
    """What can be put into a model with a strength for each layer; at strength 0 the model is as it was.

    Attributes:
        combines: the values that `combine` may take, the default first.
        site: where it acts: one of `SITES`, "logits", "tokens" or "weights".
        defaults: how it is applied where a call does not say (`with_defaults`).
        own_positions: whether its parts act at positions of their own, so that a call can choose none.
        of_activations: whether it is a change of activations alone, which any model that is run by modules can have.
    """

    combines: ClassVar[tuple[str, ...]]
    site: str
    defaults: Defaults = Defaults()
    own_positions: ClassVar[bool] = False
    of_activations: ClassVar[bool] = False

    @property
    @abstractmethod
    def layers(self) -> tuple[int, ...]:
        """The layers that there is an edit for, ascending."""

    @property
    def n_layers(self) -> int | None:
        """Number of layers of the model that the edit is for, None where unknown."""
        return None

    @property
    def signature(self) -> Mapping[int, float] | None:
        """Signature of each layer (docs/method.md 2.5), None where there is none."""
        return None

    @abstractmethod
    def changes(self, model: Any, where: Where) -> Sequence[Change]:
        """The changes of a model that the edit consists of, not made yet; arguments as in `put`."""

    def put(self, model: Any, where: Where) -> Installation:
        """Put the edit into a model that has been checked; `install` and `applied` call `check` and then this.

        Args:
            model: the model that was checked.
            where: from `check`, or one with other strengths.

        Returns:
            A context manager; without a context the edit stays for as long as something holds it.
        """
        installation = Installation(host(model), self, where)
        installation.standing.put(self.changes(model, where))
        return installation

    def install(
        self,
        model: Any,
        layers: LayerChoice | None = None,
        strength: Strength | None = None,
        combine: str | None = None,
        positions: Positions | None = None,
    ) -> Installation:
        """Install the edit until the returned handle is removed; arguments and errors as in `applied`."""
        return self.put(model, self.check(model, layers, strength, combine, positions)).keep()

    def check_model(self, model: Any) -> None:
        """Refuse a model that the edit does not fit.

        Raises:
            MismatchError: naming what the edit and the model have.
            UnsupportedModelError: the model lacks what the edit acts on, or is not what it should be (`check_model`).
            InputError: the model drops out units at random.
        """
        lens = host(model)
        if isinstance(lens, PlainModel) and not self.of_activations:
            raise UnsupportedModelError(
                f"{type(self).__name__} acts on the {self.site}, and in a plain Hugging Face model an edit acts on "
                f"activations alone: expected an sl.ActivationEdit, or a TransformerLens model"
            )
        ensure_usable(lens)
        self.check_fit(lens)

    def check_fit(self, lens: LanguageModel) -> None:
        """Refuse a model of other sizes, wherever it runs.

        Raises:
            MismatchError: naming what the edit and the model have.
        """
        if self.n_layers is not None and self.n_layers != lens.n_layers:
            raise MismatchError(f"the edit is for a model of {self.n_layers} layers, {lens.name!r} has {lens.n_layers}")
        if beyond := [layer for layer in self.layers if layer >= lens.n_layers]:
            raise MismatchError(f"the edit has layers {beyond}, {lens.name!r} has only {lens.n_layers}")

    def check(
        self,
        model: Any,
        layers: LayerChoice | None = None,
        strength: Strength | None = None,
        combine: str | None = None,
        positions: Positions | None = None,
        *,
        scoring: bool = False,
    ) -> Where:
        """Refuse, before any work, what `applied` would refuse; arguments and errors as there.

        Args:
            model, layers, strength, combine, positions: as in `applied`.
            scoring: whether completions are to be scored under the edit, for which every token needs a probability.

        Returns:
            Layers, strengths, `combine` and positions as one value, for `put`.

        Warns:
            SeaLensWarning: an edit stands in the model already; names it.
        """
        self.check_model(model)
        where = self.where(layers, strength, combine, positions)
        self.check_strengths(model, where, scoring=scoring)
        warn_of_installed(model, f"{type(self).__name__} is applied")
        return where

    def where(
        self,
        layers: LayerChoice | None = None,
        strength: Strength | None = None,
        combine: str | None = None,
        positions: Positions | None = None,
    ) -> Where:
        """Where a call with these arguments acts, as one value; arguments and errors as in `applied`."""
        asked = self.settled(layers, strength, combine, positions)
        strengths = strength_of_layers(asked["strength"], self.choose_layers(asked["layers"]))
        return Where(strengths, self.choose_combine(asked["combine"]), self.choose_positions(asked["positions"]))

    def settled(
        self,
        layers: LayerChoice | None = None,
        strength: Strength | None = None,
        combine: str | None = None,
        positions: Positions | None = None,
    ) -> dict[str, Any]:
        """What a call with these arguments asks for, by name; what it does not give is what the edit remembers."""
        given = {"layers": layers, "strength": strength, "combine": combine, "positions": positions}
        fallbacks = {"layers": "all", "strength": 1.0, "combine": self.combines[0], "positions": "all"}
        for name, value in given.items():
            if value is None:
                remembered = getattr(self.defaults, name)
                given[name] = fallbacks[name] if remembered is None else remembered
        return given

    def with_defaults(
        self: Kind,
        *,
        layers: LayerChoice | None = None,
        strength: Strength | None = None,
        combine: str | None = None,
        positions: Positions | None = None,
    ) -> Kind:
        """The same edit with what was chosen for it, which every call and command takes where none is given.

        It is saved with the edit. What is not given stays as it was.

        Args:
            layers, combine, positions: as in `applied`.
            strength: as there, but a number, or one for each layer.

        Raises:
            InputError: unknown layers, `combine` or positions, or a strength that is not finite or is a tensor.

        Example:
            >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
            >>> chosen = edit.with_defaults(layers="last-2", strength=1.5)
            >>> found = sl.effect(bed.model, chosen, bed.contrasts["test"])
            >>> found.effect == sl.effect(bed.model, edit, bed.contrasts["test"], layers="last-2", strength=1.5).effect
            True
        """
        if layers is not None:
            chosen = self.choose_layers(layers)
            layers = layers if isinstance(layers, str) else chosen
        if strength is not None:
            of_layers = strength if isinstance(strength, Mapping) else dict.fromkeys(self.layers, strength)
            strengths = {layer: as_number(value, "strength") for layer, value in of_layers.items()}
            strength = strengths if isinstance(strength, Mapping) else next(iter(strengths.values()))
        combine = None if combine is None else self.choose_combine(combine)
        positions = None if positions is None else self.choose_positions(positions)
        given = {"layers": layers, "strength": strength, "combine": combine, "positions": positions}
        found = copy.copy(self)
        defaults = replace(self.defaults, **{name: value for name, value in given.items() if value is not None})
        # Edits are frozen: no attribute of one that somebody holds ever changes.
        object.__setattr__(found, "defaults", defaults)
        return found

    def check_strengths(self, model: Any, where: Where, *, scoring: bool) -> None:  # noqa: B027
        """Refuse what this method in particular cannot do; most have nothing to add to `check`.

        Raises:
            InputError: saying what was expected.
        """

    def choose_combine(self, combine: str | None) -> str:
        """The way to combine of this name, the first of `combines` where none is named.

        Raises:
            InputError: it is not one of `combines`.
        """
        if combine is not None and combine not in self.combines:
            raise InputError(f"unknown combine {combine!r}: expected one of {', '.join(self.combines)}")
        return combine or self.combines[0]

    def choose_layers(self, layers: LayerChoice) -> tuple[int, ...]:
        """The layers of this edit that a choice names."""
        return choose_layers(layers, self.layers, self.signature)

    def choose_positions(self, positions: Positions) -> Positions:
        """A choice of positions, which only an edit of activations has.

        Raises:
            InputError: it is unknown, or this edit acts at all positions or at none.
        """
        if check_positions(positions) != "all":
            raise InputError(
                f"{type(self).__name__} acts on the {self.site}, and so at all positions: expected positions 'all', "
                f"got {positions_name(positions)!r}"
            )
        return positions

    @contextlib.contextmanager
    def applied(
        self,
        model: Any,
        layers: LayerChoice | None = None,
        strength: Strength | None = None,
        combine: str | None = None,
        positions: Positions | None = None,
    ) -> Iterator[Any]:
        """The model with the edit in it, for the length of a context.

        Whatever is not given is what the edit remembers (`with_defaults`), else what is said here.

        Args:
            model: a TransformerLens model; for an edit of activations also a plain Hugging Face model (`sl.hf`).
            layers: "all", "last-L", "first-L", "signature-L", one layer, or a list of layers; all by default.
            strength: α, any finite number; or a mapping with one for each chosen layer; 1 by default. For an
                `ActivationEdit` also a tensor, as where the edit is called on activations.
            combine: for a spectral edit, how its two projections are put together; one of `combines`, the first by
                default.
            positions: for an `ActivationEdit`, at which tokens of a text it acts (docs/method.md 3.7):
                - "all", the default but for what `mean_difference` and `iti` make;
                - "prompt", the tokens of the prompt;
                - "generated" or "answer", which are the same: the tokens behind the prompt, generated or scored;
                - "last_prompt", the last token of the prompt, which the answer's first token is predicted from;
                - "from_last_prompt", this one and all behind it: each token that one of the answer is predicted from;
                - a function of (token ids of a row, length of its prompt) that gives True or False for each token.

                A scorer and `sl.generate` know what the prompt is. In passes of your own it is all that is read before
                a cache is filled, unless `sl.prompt_lengths` says otherwise.

        Yields:
            The model, which on leaving (also by an exception) is as it was before.

        Raises:
            MismatchError: the edit is for another model, or for other processing of its weights.
            UnsupportedModelError: the model lacks what the edit acts on, such as the site's hook point, or is not what
                it should be (`check_model`).
            InputError: unknown layers, `combine` or positions, or a strength or positions that the method cannot have.

        Example:
            >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
            >>> with edit.applied(bed.model, layers="last-2", strength=1.5) as edited:
            ...     sl.generate(edited, "Q: what is the river of Delkeld ? A:", max_new_tokens=1)
            [' Selwyn']
            >>> sl.generate(bed.model, "Q: what is the river of Delkeld ? A:", max_new_tokens=1)
            [' Selwyn']
        """
        with self.put(model, self.check(model, layers, strength, combine, positions)):
            yield model
