"""Erasing what tells positive from negative texts, by LEACE (Belrose et al. 2023, arXiv 2306.03819).

After an affine map that gives two classes the same mean, no linear probe can tell them apart. Of these maps LEACE is
the closest to the identity in mean square (docs/method.md 5.3). It changes an activation along one direction:

    erased(x) = x − l ⟨r, x − c⟩        r = W w,  l = W⁻¹ w,  w ∝ W (mean positive − mean negative),  W = Σ^(−1/2)

with Σ the covariance of all activations and c their mean. The fit is the `concept-erasure` library's.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, SupportsIndex

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from .._support.arguments import as_integer
from .._support.versions import versions
from ..edits.activation import Arithmetic
from ..edits.foldable import SavedActivationEdit
from ..edits.in_model import warn_of_installed
from ..edits.saved import check_units, grouped_by_layer, require
from ..edits.where import Defaults, LayerChoice, choose_layers
from ..errors import ActivationError, MissingPackageError
from ..models.lens import Lens
from ..models.reading import Reading
from ..models.sites import Site
from ..spectral.covariance import refuse_non_finite
from ..texts.demonstrations import Demonstrations
from ..texts.items import Demonstration

# The means of the two classes may stay apart by this share of what they were.
TOLERANCE = 1e-3
# How far from a projection an eraser may be; whitening and its inverse lose digits where a covariance is near singular.
PROJECTION = 1e-4


@dataclass(frozen=True)
class Eraser:
    """erased(x) = x − left ⟨right, x − centre⟩, for each unit of a layer; float64.

    Attributes:
        left: the direction that is taken out.
        right: what measures how much of it there is; in whitened coordinates the two are one direction.
        centre: mean activation, where nothing changes.
    """

    left: Float[Tensor, "units d"]
    right: Float[Tensor, "units d"]
    centre: Float[Tensor, "units d"]

    def erased_from(self, difference: Float[Tensor, "*batch units d"]) -> Float[Tensor, "*batch units d"]:
        """What is taken out of a difference of activations: left ⟨right, difference⟩."""
        measured = einsum(difference, self.right.to(difference), "... units d, units d -> ... units")
        return einsum(measured, self.left.to(difference), "... units, units d -> ... units d")


@dataclass(frozen=True, eq=False)
class LEACE(SavedActivationEdit):
    """Linear concept erasure: made by `leace`; x + α (erased(x) − x).

    Attributes:
        site: where it acts.
        erasers: the eraser of each layer.
    """

    combines: ClassVar[tuple[str, ...]] = ("erase",)
    kind: ClassVar[str] = "LEACE edit"

    site: str
    erasers: Mapping[int, Eraser]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    defaults: Defaults = field(default=Defaults(), kw_only=True, repr=False)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.erasers))

    @property
    def shape(self) -> tuple[int, int]:
        units, d = self.erasers[self.layers[0]].left.shape
        return units, d

    def arithmetic(self, layer: int, combine: str) -> Arithmetic:
        eraser = self.erasers[layer]

        def edited(x: Tensor, strength: float | int | Tensor) -> Tensor:
            if isinstance(strength, Tensor):
                strength = strength.to(x)[..., None]
            return x - strength * eraser.erased_from(x - eraser.centre.to(x))

        return edited

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"layers.{layer}.{name}": getattr(eraser, name)
            for layer, eraser in self.erasers.items()
            for name in ("left", "right", "centre")
        }

    def facts(self) -> dict[str, Any]:
        return {"site": self.site}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> "LEACE":
        erasers = {layer: Eraser(**named) for layer, named in grouped_by_layer(tensors).items()}
        return cls(header["site"], erasers, header["provenance"])

    def check_content(self) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors().items()}
        check_units(self.site, shapes, self.provenance)
        for layer, eraser in self.erasers.items():
            # A projection takes out the same a second time: ⟨right, left⟩ is 1, or 0 where there is nothing to erase.
            measured = einsum(eraser.right, eraser.left, "units d, units d -> units")
            nothing = eraser.left.abs().amax(-1) + eraser.right.abs().amax(-1) == 0
            off = float(((measured - 1).abs() * ~nothing).max())
            require(off <= PROJECTION, f"layer {layer}: erasing is no projection (off by {off:.1e})")
            taken = eraser.erased_from(eraser.centre).square()
            require(bool(torch.isfinite(taken).all()), f"layer {layer}: its centre is too large to be an activation")

    def __repr__(self) -> str:
        return f"LEACE(site={self.site!r}, layers={list(self.layers)})"


def leace(
    model: Any,
    demonstrations: Iterable[Demonstration],
    site: str = "mlp_out",
    layers: LayerChoice = "all",
    position: str = "last",
    shrinkage: bool = True,
    batch_size: SupportsIndex = 16,
    progress: bool = True,
    *,
    prepend_bos: bool = True,
    seed: SupportsIndex = 0,
) -> LEACE:
    """Fit an eraser of the difference between positive and negative texts for each layer.

    Every layer is fitted on the unedited model; the edit acts at every position, though it is fitted at one of each
    text.

    Args:
        model: a TransformerLens model.
        demonstrations: at least one; their neutral texts play no part.
        site: where to erase; at "z" in each head on its own.
        layers: which layers, as in `choose_layers`, by default all.
        position: the activation of a text, as in `capture`.
        shrinkage: estimate the covariance by optimal linear shrinkage, the library's default. It helps more the fewer
            texts there are for each dimension, but with very few it may fail. Without shrinkage the covariance of the
            sample is inverted where it is not zero, and what is erased may be an accident of the sample.
        batch_size: demonstrations at a time.
        progress: show a progress bar.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        seed: for position "random".

    Returns:
        The edit. Memory while fitting: layers · units · d² numbers of float64, whatever the number of demonstrations.

    Raises:
        MissingPackageError: the package concept-erasure is not installed.
        InputError: unknown site, layer or position.
        DemonstrationError: a text longer than the model's context; names it. Checked before any forward pass.
        ActivationError: NaN or infinite activations, or a covariance from which nothing could be erased; names the
            layer.
    """
    new_fitter = _library().LeaceFitter
    lens = Lens.of(model)
    warn_of_installed(model, "activations are read")
    batch_size, seed = as_integer(batch_size, "batch_size", least=1), as_integer(seed, "seed")
    reading = Reading(site, position=position, prepend_bos=prepend_bos, seed=seed)
    chosen = choose_layers(layers, range(lens.n_layers))
    demonstrations = Demonstrations.of(demonstrations)
    units, width = Site.of(site).shape(lens)
    device = lens.double_device

    def fitter() -> Any:
        # This erasure cannot make the trace of the covariance grow, so a limit on it has nothing to do, but
        # rounding could trigger it, and it would put full matrices in place of the two thin factors. The threshold on
        # singular values is meant for concepts of many classes; at its default of 0.01 a weak concept would stay in
        # place without a word.
        options = {"shrinkage": shrinkage, "constrain_cov_trace": False, "svd_tol": 1e-12}
        return new_fitter(width, 1, device=device, dtype=torch.float64, **options)

    fitters = [[fitter() for _ in range(units)] for _ in chosen]
    for indices, three in reading.read(lens, demonstrations, chosen, batch_size=batch_size, progress=progress):
        names = [demonstrations.names[i] for i in indices]
        for kind, label in (("positive", 1.0), ("negative", 0.0)):
            x = getattr(three, kind).to(device, torch.float64)
            refuse_non_finite(kind, x, names, site, chosen)
            for place, of_layer in enumerate(fitters):
                for unit, of_unit in enumerate(of_layer):
                    of_unit.update(x[:, place, unit], torch.full((len(x), 1), label, device=device))
    erasers = {layer: _eraser(of_layer, layer) for layer, of_layer in zip(chosen, fitters, strict=True)}
    provenance = {
        "model": lens.record,
        "shrinkage": shrinkage,
        "position": position,
        "prepend_bos": prepend_bos,
        "seed": seed,
        "demonstrations": [demonstrations.record],
        "versions": versions("concept-erasure"),
    }
    return LEACE(site, erasers, provenance)


def _library() -> Any:
    """The package concept-erasure, which is not needed for anything else."""
    try:
        with warnings.catch_warnings():
            # What a package says to its authors when it is imported.
            warnings.simplefilter("ignore", DeprecationWarning)
            import concept_erasure
    except ImportError as error:
        raise MissingPackageError(
            "leace needs the package concept-erasure: install it with pip install 'sea-lens[leace]'"
        ) from error
    return concept_erasure


def _eraser(fitters: list[Any], layer: int) -> Eraser:
    """The fitted eraser of a layer, after checking that it erases.

    Raises:
        ActivationError: it leaves more than `TOLERANCE` of the difference between the two means, or could not be had.
    """
    try:
        found = [fitter.eraser for fitter in fitters]
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise ActivationError(
            f"layer {layer}: the covariance of the activations could not be decomposed: expected more demonstrations, "
            f"or another position"
        ) from error
    eraser = Eraser(
        torch.stack([rearrange(one.proj_left, "d 1 -> d") for one in found]).cpu(),
        torch.stack([rearrange(one.proj_right, "1 d -> d") for one in found]).cpu(),
        torch.stack([one.bias for one in found]).cpu(),
    )
    # The covariance with the label is the difference of the class means, up to a factor.
    apart = torch.stack([rearrange(fitter.sigma_xz, "d 1 -> d") for fitter in fitters]).cpu()
    left = apart - eraser.erased_from(apart)
    for unit, (before, after) in enumerate(zip(apart.norm(dim=-1).tolist(), left.norm(dim=-1).tolist(), strict=True)):
        if not after <= TOLERANCE * before:
            head = f", head {unit}" if len(fitters) > 1 else ""
            raise ActivationError(
                f"layer {layer}{head}: the covariance of so few texts could not be inverted, so that "
                f"{after / before:.0%} of the difference would stay: expected more demonstrations, or shrinkage=False"
            )
    return eraser
