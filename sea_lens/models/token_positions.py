"""Where in a text an edit acts: which positions of a forward pass a choice of positions means (docs/method.md 3.7).

Whoever reads texts says how many tokens of each row are the prompt (`Told`); the mask of a choice is made once for each
pass, for all layers together. Tokens are counted from a row's first one: padding is left out, and a prefix that stands
in front of what a caller gave (`models.prefix`) belongs to the prompt.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._support.arguments import as_integer
from .._support.arguments import given as shown_value
from ..errors import InputError, UnsupportedModelError
from .lens import Lens
from .passes import Pass
from .plain_model import PlainModel, host
from .tokens import bos_token

Positions: TypeAlias = str | Callable[[Tensor, int], Any]
"""One of `POSITIONS`, or a function of (token ids of a row, length of its prompt) that says for each token whether."""

POSITIONS = ("all", "prompt", "generated", "last_prompt", "answer", "from_last_prompt")


def check_positions(positions: Any) -> Positions:
    """A choice of positions.

    Raises:
        InputError: it is neither one of `POSITIONS` nor a function.
    """
    if not callable(positions) and (not isinstance(positions, str) or positions not in POSITIONS):
        raise InputError(
            f"unknown positions {positions!r}: expected one of {', '.join(POSITIONS)}, or a function of (token ids, "
            f"prompt length)"
        )
    return positions


def positions_name(positions: Positions) -> str:
    """What results call a choice of positions."""
    return positions if isinstance(positions, str) else getattr(positions, "__qualname__", repr(positions))


@dataclass(frozen=True)
class Told:
    """What is known of the rows of the passes to come.

    Attributes:
        prompts: how many tokens of each row are the prompt, BOS counted, padding and prefix not.
        before: gives the tokens of each row that the cache holds, likewise; None where nobody knows them.
        for_every_row: whether there is one length, which holds for all rows.
    """

    prompts: tuple[int, ...]
    before: Callable[[], Sequence[Sequence[int]]] | None = None
    for_every_row: bool = False


@contextlib.contextmanager
def telling(
    lens: Lens, prompts: Sequence[int], before: Callable[[], Sequence[Sequence[int]]] | None = None
) -> Iterator[None]:
    """Say, for the length of a context, how long the prompts of all passes in it are; fields as in `Told`."""
    outer = lens.told
    try:
        lens.told = Told(tuple(prompts), before)
        yield
    finally:
        lens.told = outer


@contextlib.contextmanager
def telling_of_row(lens: Lens, row: int) -> Iterator[None]:
    """Tell, for the length of a context, of one row of those that have been told of; of none where none has."""
    outer = lens.told
    try:
        if outer is not None and not outer.for_every_row:
            lens.told = replace(outer, prompts=outer.prompts[row : row + 1], before=None)
        yield
    finally:
        lens.told = outer


@contextlib.contextmanager
def prompt_lengths(model: Any, lengths: SupportsIndex | Iterable[SupportsIndex]) -> Iterator[Any]:
    """Say how long the prompts are in passes of your own, for edits that act at some positions (docs/method.md 3.7).

    `sl.generate`, `sl.effect`, `sl.evaluate` and the like know it by themselves. Without this, all that is read before
    a cache is filled counts as the prompt.

    Args:
        model: a TransformerLens model.
        lengths: how many tokens of each row are its prompt, BOS counted and padding not; one number for all rows, or
            one for each row.

    Yields:
        The model.

    Raises:
        InputError: a length that is no whole number of at least 0; in a pass, other rows than there are lengths.

    Example:
        >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
        >>> tokens = bed.model.to_tokens("Q: what is the river of Delkeld ? A: Mirev", prepend_bos=True)
        >>> with sl.prompt_lengths(bed.model, 10), edit.applied(bed.model, positions="answer"):
        ...     logits = bed.model(tokens)
        >>> bool((logits == bed.model(tokens))[0, :10].all()), bool((logits == bed.model(tokens))[0, 10:].all())
        (True, False)
    """
    lens = host(model)
    many = isinstance(lengths, Iterable) and getattr(lengths, "ndim", 1) > 0
    given = [as_integer(one, "a prompt's length", least=0) for one in (lengths if many else [lengths])]  # type: ignore[union-attr]
    # An empty group of hooks: passes are seen while it stands, also those under hooks of the user's own.
    with lens.hooks([]):
        outer = lens.told
        try:
            lens.told = Told(tuple(given), None, for_every_row=not many)
            yield model
        finally:
            lens.told = outer


@dataclass(frozen=True)
class Acting:
    """The positions of one pass at which something acts.

    Attributes:
        mask: True where it does.
        anywhere, everywhere: whether it does at any position and at all of them.
    """

    mask: Bool[Tensor, "batch pos"]
    anywhere: bool
    everywhere: bool

    def over(self, x: Tensor) -> Bool[Tensor, "batch pos *ones"]:
        """The mask with as many axes as an activation (batch, pos, …), on its device."""
        return self.mask.to(x.device)[(..., *[None] * (x.ndim - 2))]


def acting(lens: Lens | PlainModel, positions: Positions, x: Float[Tensor, "batch pos *rest"]) -> Acting:
    """Where a choice of positions acts in the pass that the model runs now; made once for each pass.

    Args:
        lens: the model.
        positions: the choice.
        x: an activation of the pass.

    Raises:
        InputError: the pass does not say what is needed, such as its tokens; says what was expected.
        UnsupportedModelError: the activation has no axes for the rows and tokens of the pass.
    """
    current = lens.current_pass
    if current is None:
        raise InputError(
            f"positions {positions_name(positions)!r}: nobody sees which tokens the model reads: expected "
            f"`edit.applied` or `edit.install`, or `fwd_hooks` within `sl.prompt_lengths(model, lengths)`"
        )
    if positions not in current.acting:
        mask = _mask(lens, positions, current, x)
        current.acting[positions] = Acting(mask, bool(mask.any()), bool(mask.all()))
    found = current.acting[positions]
    if x.shape[:2] != found.mask.shape:
        raise UnsupportedModelError(
            f"model {lens.name!r}: an activation of shape {tuple(x.shape)} has no axes for the "
            f"{tuple(found.mask.shape)} rows and tokens that are read, so that it cannot be edited at some of them"
        )
    return found


def _mask(
    lens: Lens | PlainModel, positions: Positions, current: Pass, x: Float[Tensor, "batch pos *rest"]
) -> Bool[Tensor, "batch pos"]:
    # A pass may begin with embeddings (HookedTransformer's own generation), so that its tokens are not known.
    batch, n = x.shape[:2] if current.tokens is None else current.tokens.shape
    index, real = _places(lens, current, batch, n, x.device)
    prompts = _prompts(lens, current, index, real)
    if callable(positions):
        return _asked(lens, positions, current, prompts, real).to(x.device)
    ends = torch.tensor(prompts, device=x.device)[:, None]
    masks = {
        "all": index >= 0,
        "prompt": index < ends,
        "generated": index >= ends,
        "answer": index >= ends,
        "last_prompt": index == ends - 1,
        "from_last_prompt": index >= ends - 1,
    }
    return masks[positions] & real


def _places(
    lens: Lens | PlainModel, current: Pass, batch: int, n: int, device: torch.device
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """The place of each token in its row, counted without padding; and which positions are no padding."""
    if current.mask is None:
        real = torch.ones(batch, n, dtype=torch.bool, device=device)
        if batch > 1 and current.tokens is not None and current.read_before == 0:
            real = ~_padding(lens, current.tokens.to(device))
        return current.read_before + real.long().cumsum(1) - 1, real
    whole = batch, current.read_before + n
    if tuple(current.mask.shape) != whole:
        raise InputError(
            f"an edit at some positions needs the attention mask of every token, read before or now: expected shape "
            f"{whole}, got {tuple(current.mask.shape)}"
        )
    real = current.mask.to(device) != 0
    return (real.long().cumsum(1) - 1)[:, -n:], real[:, -n:]


def _padding(lens: Lens | PlainModel, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Padding in rows that came without a mask, by TransformerLens's own rule: the pad tokens at the padding side."""
    tokenizer = getattr(lens.model, "tokenizer", None)
    if tokenizer is None or (pad := tokenizer.pad_token_id) is None:
        return torch.zeros_like(tokens, dtype=torch.bool)
    others = (tokens != pad).long()
    if tokenizer.padding_side == "right":
        return others.flip(1).cumsum(1).flip(1) == 0
    leading = others.cumsum(1) == 0
    # The last of them may be a BOS of the same name.
    return leading & leading.roll(-1, 1) if pad == tokenizer.bos_token_id else leading


def _prompts(
    lens: Lens | PlainModel, current: Pass, index: Int[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"]
) -> list[int]:
    """Length of each row's prompt, a prefix counted.

    Where nobody told, all that the first pass reads is the prompt, and all that is read behind a cache is generated.
    """
    if lens.told is not None:
        lengths = lens.told.prompts * (len(index) if lens.told.for_every_row else 1)
        if len(lengths) != len(index):
            raise InputError(f"lengths of {len(lengths)} prompts are given, and the model reads {len(index)} rows")
        return [length + lens.prefix_length for length in lengths]
    if current.generated is not None:
        given = current.generated.prompts
        if current.mask is None:
            return [given] * len(index)
        # A prompt that is read in parts has a mask of what was read so far.
        return (given - (current.mask[:, :given] == 0).sum(1)).tolist()
    if current.read_before:
        return index[:, 0].tolist()
    return real.sum(1).tolist()


def _asked(
    lens: Lens | PlainModel, function: Callable[[Tensor, int], Any], current: Pass, prompts: Sequence[int], real: Tensor
) -> Bool[Tensor, "batch pos"]:
    """The mask that a function of a user's gives, row by row; at a prefix nothing acts."""
    if current.tokens is None:
        raise InputError(
            f"positions {positions_name(function)!r} asks for tokens, and this pass begins with embeddings: expected "
            f"tokens (HookedTransformer.generate hands on embeddings, `sl.generate` does not)"
        )
    prefix = lens.prefix_length
    if current.read_before == 0:
        before: Sequence[Sequence[int]] = [()] * len(real)
    elif lens.told is not None and lens.told.before is not None:
        before = lens.told.before()
    elif current.generated is not None and current.generated.rows is not None and lens.told is None:
        before = _read_already(current.generated.rows, current)
    else:
        raise InputError(
            f"positions {positions_name(function)!r} asks for the tokens of whole rows, and this pass goes on from a "
            f"cache: expected `sl.generate`, or `generate` of a plain Hugging Face model, or a pass without a cache"
        )
    mask = torch.zeros(real.shape, dtype=torch.bool)
    for row, (tokens, read) in enumerate(zip(current.tokens.tolist(), before, strict=True)):
        places = real[row].nonzero()[:, 0].tolist()
        if current.read_before == 0 and prefix:
            has_bos = bool(places) and tokens[places[0]] == bos_token(lens)
            places = [*places[:has_bos], *places[has_bos + prefix :]]
        whole, prompt = [*read, *(tokens[place] for place in places)], prompts[row] - prefix
        chosen = _called(function, whole, prompt)
        if read and chosen[: len(read)] != _called(function, read, prompt):
            raise InputError(
                f"positions {positions_name(function)!r} chooses a position by tokens behind it, which are not known "
                f"while a text is generated: expected a function that looks at earlier tokens alone"
            )
        mask[row, places] = torch.tensor(chosen[len(read) :], dtype=torch.bool)
    return mask


def _read_already(rows: Int[Tensor, "batch pos"], current: Pass) -> list[list[int]]:
    """The tokens of each row that the cache holds, without padding."""
    end = current.read_before
    real = torch.ones_like(rows) if current.mask is None else current.mask.to(rows.device)
    return [row[:end][kept[:end] != 0].tolist() for row, kept in zip(rows, real, strict=True)]


def _called(function: Callable[[Tensor, int], Any], tokens: Sequence[int], prompt: int) -> list[bool]:
    given = function(torch.tensor(list(tokens), dtype=torch.int64), prompt)
    try:
        found = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"positions {positions_name(function)!r} gave {shown_value(given)}: expected one True or False for each of "
            f"{len(tokens)} tokens"
        ) from None
    if found.dtype != torch.bool or tuple(found.shape) != (len(tokens),):
        raise InputError(
            f"positions {positions_name(function)!r} gave {found.dtype} of shape {tuple(found.shape)}: expected one "
            f"True or False for each of {len(tokens)} tokens"
        )
    return found.tolist()
