"""`sl.hf`: edits in plain Hugging Face models, without TransformerLens (docs/method.md 12.1).

    model = AutoModelForCausalLM.from_pretrained(name)
    with sl.hf.applied(model, sl.load_edit("edit.safetensors")):
        model.generate(**tokenizer(prompt, return_tensors="pt"))

An edit and what it does are the same as in TransformerLens. Analyses and measurements need a TransformerLens model.
"""

from contextlib import AbstractContextManager
from typing import Any

from ..errors import UnsupportedModelError
from ..models.language_model import is_plain
from .base import Edit, as_edit
from .in_model import Installation
from .where import LayerChoice, Positions, Strength


def applied(
    hf_model: Any,
    edit: Edit,
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
) -> AbstractContextManager[Any]:
    """A Hugging Face model with the edit in it, for the length of a context.

    Passes, `generate` (greedy, beams, sampling, with a cache and left padding) and `pipeline` of the model run with the
    edit. What attention and the MLP of each block are is found by a pass over a few tokens, and proven: their outputs
    must add up to what the block adds.

    Args:
        hf_model: any causal language model of transformers, one with adapters of peft too, on whatever devices; in
            evaluation mode.
        edit: of any method that changes activations.
        layers, strength, combine, positions: as in `Edit.applied`. Where positions ask for the prompt, that is all that
            is read before a cache is filled, but for padding by the attention mask.

    Yields:
        The model, which on leaving is as it was before.

    Raises:
        UnsupportedModelError: no model of transformers, an edit of something else than activations, or a model whose
            blocks do not have the edit's site.
        Otherwise as in `Edit.applied`.

    Example:
        >>> from transformers import AutoModelForCausalLM, AutoTokenizer
        >>> name = sl.testbed.PATH
        >>> model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
        >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
        >>> prompt = tokenizer("Q: what is the river of Delkeld ? A:", return_tensors="pt")
        >>> with sl.hf.applied(model.eval(), edit, layers="last-2"):
        ...     tokens = model.generate(**prompt, max_new_tokens=1, do_sample=False)
        >>> tokenizer.decode(tokens[0, -1])
        'Selwyn'
    """
    _refuse_others(hf_model)
    return as_edit(edit).applied(hf_model, layers, strength, combine, positions)


def install(
    hf_model: Any,
    edit: Edit,
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
) -> Installation:
    """Put the edit into the model until the returned handle is removed; arguments and errors as in `applied`."""
    _refuse_others(hf_model)
    return as_edit(edit).install(hf_model, layers, strength, combine, positions)


def _refuse_others(hf_model: Any) -> None:
    if not is_plain(hf_model):
        raise UnsupportedModelError(
            f"expected a model of transformers (AutoModelForCausalLM), got {type(hf_model).__name__}; for one of "
            f"TransformerLens use edit.applied"
        )
