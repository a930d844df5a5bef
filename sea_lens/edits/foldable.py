"""Edits of activations that are kept in files, and that can be written into the weights of a model."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from .activation import ActivationEdit
from .folding import fold
from .saved import SavedEdit
from .where import LayerChoice, Positions, Strength


class SavedActivationEdit(SavedEdit, ActivationEdit):
    """An edit of activations with `save`, `load` and `fold`."""

    def unscaled(self, layer: int, combine: str) -> Callable[[Tensor], Tensor] | None:
        """What this way to combine rescales to the length of the activation, at strength 1, as a function of units.

        None where it does not rescale, or what it rescales is no affine map of the activation.
        """
        return None

    def fold(
        self,
        model: Any,
        combine: str | None = None,
        layers: LayerChoice | None = None,
        strength: Strength | None = None,
        demonstrations: Iterable[Any] | None = None,
        *,
        positions: Positions | None = None,
        in_place: bool = False,
    ) -> Any:
        """A plain Hugging Face model with the edit written into its weights (docs/method.md 12.4).

        An edit that is an affine map of activations is written exactly: a spectral edit with `combine="average"`, mean
        difference, LEACE and others. One that keeps the length of each activation has no exact fold: the best is
        written, with one scale a layer that is fitted on demonstrations, and how far it is from the edit is told.

        Args:
            model: the Hugging Face model; or a TransformerLens model that `sl.load_model` loaded.
            combine, layers, strength: as in `applied`; a strength is a number, or one for each layer.
            demonstrations: or texts, where lengths are kept: what scales are fitted and divergence is measured on.
            positions: "all", where the edit remembers others, as mean difference and ITI do.
            in_place: change the weights of the given Hugging Face model itself, where memory has no room for two.

        Returns:
            A Hugging Face model that needs nothing of sea_lens's: `save_pretrained` writes it. Its attribute
            `sea_lens_fold` says what was written: `.scales`, `.deviation`, `.kl`, and `.edit`, the map that it holds as
            an edit, whose effect `sl.effect` measures.

        Raises:
            UnsupportedModelError: no single matrix gives the site (a norm behind it, a mixture of experts, the residual
                stream), the matrix is shared, quantised or inside an adapter, an offset has no bias to go to, or the
                logits of the folded model are not those of the edited one.
            InputError: an edit at other positions than all, a strength for single tokens, or one that keeps lengths
                without demonstrations.
            MismatchError: the edit is for another model.

        Example:
            >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
            >>> folded = edit.fold(bed.model, combine="average")
            >>> type(folded).__name__, folded.sea_lens_fold.is_exact
            ('LlamaForCausalLM', True)
        """
        return fold(self, model, self.where(layers, strength, combine, positions), demonstrations, in_place=in_place)
