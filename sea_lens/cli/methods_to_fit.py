"""What `fit --method` fits beside spectral edits: each method with its options, and refusals of all others."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ..edits.saved import SavedEdit
from ..errors import InputError
from ..methods.ablated_direction import directional_ablation
from ..methods.adapters import lora
from ..methods.concept_erasure import leace
from ..methods.covariance_ratios import generalised_eigen
from ..methods.mean_steering import mean_difference
from ..methods.plane_rotation import angular_steering
from ..methods.probed_heads import iti
from ..spectral.capturing import capture
from ..texts.demonstrations import Demonstrations

SPECTRAL = "spectral"
# Options of `capture`, which methods that fit from its statistics have.
_CAPTURE = ("site", "fit_site", "layers", "position", "neutral", "store")


class Method(NamedTuple):
    """A method, and the options of `fit` that it has.

    Attributes:
        fit: makes an edit of a model, demonstrations and options.
        options: those that it has, by the name of the command's option.
    """

    fit: Callable[..., SavedEdit]
    options: tuple[str, ...]


def _from_statistics(method: Callable[..., SavedEdit], own: Iterable[str] = ()) -> Method:
    own = tuple(own)

    def fit(model: Any, demonstrations: Demonstrations, **options: Any) -> SavedEdit:
        of_method = {name: options.pop(name) for name in own if name in options}
        return method(capture(model, demonstrations, **options), **of_method)

    return Method(fit, (*_CAPTURE, *own))


def _lora(model: Any, demonstrations: Demonstrations, batch_size: int, **options: Any) -> SavedEdit:
    """Trained with batches of its own: their size is part of what is trained, not of what fits into memory."""
    return lora(model, demonstrations, **options)


METHODS: Mapping[str, Method] = {
    "mean_difference": _from_statistics(mean_difference),
    "iti": Method(iti, ("heads",)),
    "leace": Method(leace, ("site", "layers", "position")),
    "lora": Method(_lora, ("rank", "layers")),
    "directional_ablation": _from_statistics(directional_ablation),
    "generalised_eigen": _from_statistics(generalised_eigen, ("rank",)),
    "angular_steering": _from_statistics(angular_steering),
}


def method_of(name: str, given: Mapping[str, Any]) -> Method | None:
    """The method of this name; None for the spectral one.

    Args:
        name: of the method.
        given: the options that were given, by name; those of the spectral method too.

    Raises:
        InputError: there is no such method, or it does not have one of the options.
    """
    if name != SPECTRAL and name not in METHODS:
        raise InputError(f"--method {name!r}: expected one of {', '.join((SPECTRAL, *METHODS))}")
    own = None if name == SPECTRAL else METHODS[name].options
    if others := [one for one in given if (one == "heads" if own is None else one not in own)]:
        options = ", ".join(f"--{one.replace('_', '-')}" for one in others)
        raise InputError(f"{options}: --method {name} has no such option")
    return METHODS.get(name)
