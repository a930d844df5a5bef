"""Edited models inside EleutherAI's lm-evaluation-harness (extra `lm-eval`)."""

from typing import Any, SupportsIndex

from .._support.arguments import as_integer
from ..edits.base import Edit
from ..edits.where import LayerChoice, Positions, Strength, warn_without_edit
from ..errors import MissingPackageError


def harness_model(
    model: Any,
    edit: Edit | None = None,
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    batch_size: SupportsIndex = 16,
    prepend_bos: bool = True,
) -> Any:
    """The model, with the edit in it whenever it runs, as the harness wants it.

        lm_eval.simple_evaluate(model=sl.harness_model(model, edit), tasks=["truthfulqa_mc1"])

    Texts are read as everywhere in sea_lens: one BOS in front where the tokenizer has one.

    Args:
        model: a TransformerLens model.
        edit: the edit, none by default.
        layers, strength, combine, positions: as in `applied`.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.

    Returns:
        A subclass of the harness's `HFLM`.

    Raises:
        MissingPackageError: the harness is not installed.
        MismatchError: the edit is for another model.
        InputError: unknown layers, `combine` or positions.

    Warns:
        UserWarning: one of them or a strength is given without an edit.
    """
    batch_size = as_integer(batch_size, "batch_size", least=1)
    if edit is None:
        warn_without_edit(layers=layers, strength=strength, combine=combine, positions=positions)
    where = None if edit is None else edit.check(model, layers, strength, combine, positions)
    try:
        from .harness_lm import EditedLM
    except ImportError as error:
        raise MissingPackageError(
            "harness_model needs EleutherAI's harness: install it with pip install 'sea-lens[lm-eval]'"
        ) from error
    # The harness's decorators hide from type checkers that its class is no abstract one.
    concrete: Any = EditedLM
    return concrete(model, edit, where, batch_size, prepend_bos)
