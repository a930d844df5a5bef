"""From a model and demonstrations to cross-covariances (docs/method.md 1 and 2): streamed once, or read and kept."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypedDict, overload

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from .._support.arguments import as_integer
from ..edits.in_model import warn_of_installed
from ..edits.where import LayerChoice, choose_layers
from ..models.lens import Lens
from ..models.reading import Reading
from ..models.sites import site_names
from ..models.vllm_engine import language_model
from ..texts.demonstrations import Demonstrations
from ..texts.items import Demonstration
from .covariance import CrossCovariance
from .edit import SpectralEdit
from .features import FeatureMap, feature_map, feature_maps
from .layer_statistics import Three
from .one_pass import OnePass
from .site_stores import store_folders
from .statistics import Activations, InMemory

Sites: TypeAlias = list[str] | tuple[str, ...]
Features: TypeAlias = list[str] | list[FeatureMap] | list[str | FeatureMap] | tuple[str | FeatureMap, ...]


class _Options(TypedDict, total=False):
    """What `capture` takes besides."""

    layers: LayerChoice
    position: str
    neutral: str
    batch_size: int
    progress: bool
    fit_site: str | None
    prepend_bos: bool
    max_new_tokens: int
    seed: int
    store: str | os.PathLike[str] | None


@overload
def capture(
    model: Any,
    demonstrations: Iterable[Demonstration],
    site: str = "mlp_out",
    layers: LayerChoice = "all",
    position: str = "last",
    neutral: str = "prompt",
    feature: str | FeatureMap = "identity",
    batch_size: int = 16,
    progress: bool = True,
    *,
    fit_site: str | None = None,
    prepend_bos: bool = True,
    max_new_tokens: int = 32,
    seed: int = 0,
    store: str | os.PathLike[str] | None = None,
) -> CrossCovariance: ...


@overload
def capture(
    model: Any,
    demonstrations: Iterable[Demonstration],
    site: Sites,
    *,
    feature: str | FeatureMap = "identity",
    **options: Unpack[_Options],
) -> dict[str, CrossCovariance]: ...


@overload
def capture(
    model: Any,
    demonstrations: Iterable[Demonstration],
    site: str = "mlp_out",
    *,
    feature: Features,
    **options: Unpack[_Options],
) -> dict[str, CrossCovariance]: ...


@overload
def capture(
    model: Any,
    demonstrations: Iterable[Demonstration],
    site: Sites,
    *,
    feature: Features,
    **options: Unpack[_Options],
) -> dict[str, dict[str, CrossCovariance]]: ...


def capture(
    model: Any,
    demonstrations: Iterable[Demonstration],
    site: Any = "mlp_out",
    layers: LayerChoice = "all",
    position: str = "last",
    neutral: str = "prompt",
    feature: Any = "identity",
    batch_size: int = 16,
    progress: bool = True,
    *,
    fit_site: str | None = None,
    prepend_bos: bool = True,
    max_new_tokens: int = 32,
    seed: int = 0,
    store: str | os.PathLike[str] | None = None,
) -> Any:
    """Run the demonstrations through the model and keep what a fit needs.

    While they are fewer than the activations are wide, these are the activations in the model's dtype, else sums over
    them, whose memory does not depend on their number (docs/method.md 2.2). Several sites and several feature maps are
    read in one pass, with the same numbers as each by itself. A capture that has activations serves every feature map
    later too (`CrossCovariance.with_feature`); one that has sums does not.

    Args:
        model: a TransformerLens model, unedited or with whatever hooks the user has put there; or a vLLM engine
            (`vllm.LLM`), for many demonstrations (docs/method.md 6.14).
        demonstrations: at least one; N of them.
        site: what the edit will act on: "mlp_out", "attn_out", "resid_post", or "z" (each head on its own);
            or a list of them.
        layers: which layers, as in `choose_layers`, by default all.
        position: the activation of a text is that of its "last" token, the "mean" over its tokens, or that of a
            "random" one (docs/method.md 1.3). BOS does not count as a token of the text, unless it is all there is:
            its activation is the same for every text and often many times larger than the rest.
        neutral: the neutral text is the "prompt" alone, or the prompt with the model's own greedy continuation
            ("generated", as the authors' code does; docs/method.md 1.4).
        feature: the feature map φ, by name or your own; or a list of them, each of another name. Where sums are kept,
            they are kept for each.
        batch_size: demonstrations at a time.
        progress: show a progress bar.
        fit_site: read from another site than the edit will act on: one of the sites of the same width, or
            "hidden_states", the residual stream, at the last layer after the final norm, as the authors' code does.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        max_new_tokens: longest continuation for "generated".
        seed: for "random"; which token is read depends on the seed and the text alone, not on the batches.
        store: a folder to keep the activations in, whatever their number, instead of memory. A capture that was
            interrupted goes on there, `CrossCovariance.load` opens it again, and a fit reads one layer at a time. Of a
            list of sites each has a folder of its name in it.

    Returns:
        Cross-covariances, on the CPU. For a list of sites, a dictionary that has those of each site by its name; for a
        list of feature maps, by the name of each; for both, by site and then by feature map.

    Raises:
        FileError: the store cannot be written to, is damaged, or holds something else.
        InputError: unknown site, layer, position, neutral choice or feature, or a number out of range.
        MismatchError: `fit_site` has activations of another width than `site`, or the store is of another capture.
        UnsupportedModelError: the model has no hook point for the site.
        DemonstrationError: a text longer than the model's context; names it. Checked before any forward pass.
        ActivationError: NaN or infinite activations; names the layer and the demonstration.

    Example:
        >>> covariance = sl.capture(bed.model, bed.demonstrations)
        >>> covariance.n, covariance.layers, covariance.d
        (432, (0, 1, 2), 128)
        >>> of_sites = sl.capture(bed.model, bed.demonstrations, site=["mlp_out", "z"])
        >>> {site: (one.units, one.d) for site, one in of_sites.items()}
        {'mlp_out': (1, 128), 'z': (8, 16)}
    """
    lens = language_model(model)
    if isinstance(lens, Lens):
        warn_of_installed(model, "activations are captured")
    longest, seed = as_integer(max_new_tokens, "max_new_tokens", least=1), as_integer(seed, "seed")
    sites, maps = site_names(site), feature_maps(feature)
    readings = [Reading(one, fit_site, position, neutral, prepend_bos, longest, seed) for one in sites]
    batch_size = as_integer(batch_size, "batch_size", least=1)
    chosen = choose_layers(layers, range(lens.n_layers))
    folders = None if store is None else store_folders(store, site if isinstance(site, str) else sites)
    one_pass = OnePass.of(lens, readings, Demonstrations.of(demonstrations), chosen, batch_size)
    found = one_pass.kept(maps, folders, progress=progress)
    one_map, names = isinstance(feature, (str, FeatureMap)), [one.name for one in maps]
    of_sites = [of_site[0] if one_map else dict(zip(names, of_site, strict=True)) for of_site in found]
    return of_sites[0] if isinstance(site, str) else dict(zip(sites, of_sites, strict=True))


@dataclass(frozen=True)
class Captured:
    """Activations of demonstrations, kept on the CPU for several fits.

    Memory: three activations of every demonstration at every layer.

    Attributes:
        demonstrations: of what.
        covariance: what `capture` gives for them, with the identity for φ and its activations in one part.
    """

    demonstrations: Demonstrations
    covariance: CrossCovariance

    @classmethod
    def of(
        cls,
        model: Any,
        edit: SpectralEdit,
        demonstrations: Iterable[Demonstration],
        layers: Sequence[int] | None = None,
        *,
        batch_size: int = 16,
        progress: bool = False,
    ) -> "Captured":
        """Read demonstrations as those of an edit were, by default at all of its layers.

        Raises:
            InputError: the edit was not fitted from captured activations.
        """
        reading, chosen = Reading.recorded(edit.site, edit.provenance), tuple(edit.layers if layers is None else layers)
        return cls.read(model, reading, demonstrations, chosen, batch_size=batch_size, progress=progress)

    @classmethod
    def read(
        cls,
        model: Any,
        reading: Reading,
        demonstrations: Iterable[Demonstration],
        layers: tuple[int, ...],
        *,
        batch_size: int = 16,
        progress: bool = False,
    ) -> "Captured":
        """Read demonstrations."""
        demonstrations = Demonstrations.of(demonstrations)
        one_pass = OnePass.of(language_model(model), [reading], demonstrations, layers, batch_size)
        ((found,),) = one_pass.in_memory([feature_map("identity")], sums=False, progress=progress)
        statistics = found.statistics
        assert isinstance(statistics, Activations)
        return cls(demonstrations, replace(found, statistics=statistics.in_one_part()))

    @property
    def _values(self) -> Three:
        statistics = self.covariance.statistics
        assert isinstance(statistics, Activations)
        (part,) = statistics.parts
        assert isinstance(part, InMemory)
        return part.values

    def drawn(self, indices: Sequence[int], feature: FeatureMap) -> CrossCovariance:
        """What `capture` gives for the demonstrations with these indices, each as often as it is named."""
        chosen = torch.tensor(indices, dtype=torch.int64)
        return self._with(self.demonstrations.picked(indices), self._values.each(lambda x: x[:, chosen]), feature)

    def neutral(self, layer: int) -> Float[Tensor, "n units d"]:
        """The neutral activation of each demonstration at a layer, float64."""
        return self._values.neutral[self.covariance.layers.index(layer)].double()

    def sides(self, layer: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """The positive and negative activation of each demonstration at a layer, float64; at `z` of all heads."""
        at = self.covariance.layers.index(layer)
        _, positive, negative = self._values
        positive, negative = (rearrange(one[at], "n units d -> n (units d)").double() for one in (positive, negative))
        return positive, negative

    def shuffled(self, seed: int, feature: FeatureMap) -> CrossCovariance:
        """What `capture` gives for `Demonstrations.shuffled`: positive and negative readings change roles.

        Nothing is read anew, since a reading depends on its text alone and is the same on either side.
        """
        shuffled = self.demonstrations.shuffled(seed)
        pairs = zip(shuffled, self.demonstrations, strict=True)
        place = rearrange(torch.tensor([new.positive != old.positive for new, old in pairs]), "n -> n 1 1")
        neutral, positive, negative = self._values
        sides = torch.where(place, negative, positive), torch.where(place, positive, negative)
        return self._with(shuffled, Three(neutral, *sides), feature)

    def _with(self, demonstrations: Demonstrations, values: Three, feature: FeatureMap) -> CrossCovariance:
        return replace(
            self.covariance,
            feature=feature,
            statistics=Activations(self.covariance.statistics.layout, (InMemory(values),)),
            provenance={**self.covariance.provenance, "demonstrations": [demonstrations.record]},
        )
