"""An edit in a vLLM engine: one function of activations for each layer, which runs at every token."""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor

from ..errors import InputError, UnsupportedModelError
from ..models.token_positions import Positions, positions_name
from ..models.vllm_engine import Engine
from .activation import ActivationEdit
from .base import Edit
from .where import LayerChoice, Strength


def applied_in_engine(
    engine: Engine,
    edit: Edit,
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
) -> AbstractContextManager[Any]:
    """The engine with the edit in it, for the length of a context; arguments and errors as in `Edit.applied`.

    Raises:
        UnsupportedModelError: an edit of something else than activations, or at a site that an engine does not have.
        InputError: other positions than all, or a strength for single tokens.
    """
    if not isinstance(edit, ActivationEdit):
        raise UnsupportedModelError(
            f"{type(edit).__name__} acts on the {edit.site}, and in a vLLM engine an edit acts on activations alone: "
            f"expected an sl.ActivationEdit, or a TransformerLens model"
        )
    points = {layer: engine.point(edit.site, layer) for layer in edit.layers}
    edit.check_fit(engine)
    where = edit.where(layers, strength, combine, positions)
    if where.positions != "all":
        raise InputError(
            f"positions {positions_name(where.positions)!r}: in a vLLM engine an edit acts at every token, prompt and "
            f"continuation: expected positions 'all', or a TransformerLens model"
        )
    for layer, alpha in where.strengths.items():
        if isinstance(alpha, Tensor) and alpha.ndim:
            raise InputError(
                f"strength of shape {tuple(alpha.shape)} for layer {layer}: in a vLLM engine tokens of several texts "
                f"stand in one row: expected one number for all of them"
            )
    return engine.edited(
        {points[layer]: partial(edit.function, layer, alpha, where.combine) for layer, alpha in where.strengths.items()}
    )
