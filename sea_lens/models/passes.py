"""Forward passes as a model runs them while something of sea_lens's stands in it, and the proof that its hooks ran.

Whoever starts a pass (a call of the model, its `generate`, Hugging Face's own, a scorer), it goes through `forward` of
the module that reads the tokens: the HookedTransformer itself, or the Hugging Face model inside a bridge. `Observer`
stands in for that method, below everything else that sea_lens puts there.
"""

import contextlib
import inspect
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from .._support.arguments import listed
from ..errors import InputError, UnsupportedModelError
from .copies import CleanCopy
from .forward_stand_in import ForwardStandIn, first_layer
from .hooks import Hook

# Seconds between two looks at whether it is a thread's turn.
_MOMENT = 0.001


@dataclass(frozen=True)
class Generated:
    """What Hugging Face's own `generate` is about to read.

    Attributes:
        rows: tokens of whole rows, those that the cache holds too; None where the pass reads others.
        prompts: how many positions of each row were given to it, padding counted.
    """

    rows: Int[Tensor, "batch pos"] | None
    prompts: int


@dataclass(eq=False)
class Pass:
    """One forward pass.

    Attributes:
        tokens: as they reach the embedding, a few-shot prefix included; None where the pass begins with embeddings.
        mask: 1 on tokens and 0 on padding, of what the cache holds too; None where nobody gave one.
        read_before: positions that stand in the cache already.
        layers: those that the pass runs.
        whole: whether it begins with the embedding and ends with the logits.
        generated: where Hugging Face's `generate` runs it on a plain model, the rows that it is of.
        expected: the hooks that stood in the model when the pass began.
        calls: how often each hook was called in it.
        acting: where choices of positions act in it, once somebody has asked (`models.token_positions`).
    """

    tokens: Int[Tensor, "batch pos"] | None
    mask: Tensor | None
    read_before: int
    layers: range
    whole: bool = True
    generated: Generated | None = None
    expected: tuple[Hook, ...] = ()
    calls: dict[Hook, int] = field(default_factory=dict)
    acting: dict[Any, Any] = field(default_factory=dict)

    def check(self, name: str) -> None:
        """Refuse what a pass of the model `name` gave, unless each hook in the layers that it ran was called once.

        Raises:
            UnsupportedModelError: naming the hook points, and what may be the reason.
        """
        if len(self.calls) == len(self.expected) and all(count == 1 for count in self.calls.values()):
            return
        wrong: dict[int, list[str]] = {}
        for hook in self.expected:
            reached = self.whole if hook.layer is None else hook.layer in self.layers
            count = self.calls.get(hook, 0)
            if hook.proven and hook.attached and reached and count != 1:
                wrong.setdefault(count, []).append(hook.name)
        if not wrong:
            return
        counts = "; ".join(f"{_times(count)}: {listed(sorted(set(names)))}" for count, names in sorted(wrong.items()))
        raise UnsupportedModelError(
            f"model {name!r}: in a forward pass each hook of sea_lens must be called once, but were called {counts}, "
            f"so the result would be that of another edit. Blocks may have been replaced since the hooks were put in, "
            f"the model or a part of it may be compiled (torch.compile), or a block may be run again or left out "
            f"(gradient checkpointing, layer dropout): expected a model whose own blocks run, each once"
        )


def _times(count: int) -> str:
    return "never" if count == 0 else f"{count} times"


class Observer:
    """Sees every pass of one model while something of sea_lens's stands in it, and gives threads their turns.

    One thread at a time has things in a model. Another that wants to put something in waits while what stands there
    only measures, which ends with a pass, and is refused while an edit stands there. A pass of the model alone, by a
    user's own code, goes by what another thread measures.

    Args:
        model: the TransformerLens model, or a plain Hugging Face model.
        name: what errors call it.
        n_layers: of a plain Hugging Face model, None for a TransformerLens model.

    Attributes:
        model: as given.
        current_pass: the pass that runs now, None between passes.
        hooks: those of sea_lens's that stand in the model, in the order in which they were put in.
        standing: what stands in the model, in groups that come and go together (`models.standing`), and behind that of
            the thread whose turn it is what others wait to put in.
        aside: whether hooks and changes of logits do nothing now (`set_aside`).
        generated: what the next pass is of, where a plain model generates.
    """

    generated: Generated | None = None

    def __init__(self, model: Any, name: str, n_layers: int | None = None) -> None:
        self.model, self.name, self.n_layers = model, name, n_layers
        self.current_pass: Pass | None = None
        self.hooks: list[Hook] = []
        self.standing: list[Any] = []
        self.aside = False
        self._told: dict[int, Any] = {}
        self._stand_in: _ObservedForward | None = None
        self._copies: list[CleanCopy] = []

    @property
    def told(self) -> Any:
        """How long the prompts of this thread's passes to come are (`models.token_positions`)."""
        return self._told.get(threading.get_ident())

    @told.setter
    def told(self, told: Any) -> None:
        if told is None:
            self._told.pop(threading.get_ident(), None)
        else:
            self._told[threading.get_ident()] = told

    def enter(self, standing: Any) -> None:
        """Note what is about to be put in, and see every pass from now on.

        Waits while another thread measures; errors as in `in_other_hands`.
        """
        # A place in the queue, which is the list itself: a thread that makes one pass after the other stands behind who
        # has waited for one. No lock, which an interrupt could leave locked.
        self.standing.insert(self._place(), standing)
        while self.in_other_hands():
            time.sleep(_MOMENT)
        if all(one is standing for one in self._of_this_thread()):
            # What an interrupt may have left.
            self.told = None
        self._attach()

    def leave(self, standing: Any) -> None:
        """Forget what has been taken out, and with the last of it leave the model; may be called twice."""
        if standing in self.standing:
            # While it is still this thread's turn.
            if len(self.standing) == 1:
                self._detach()
            self.standing.remove(standing)

    def _of_this_thread(self) -> list[Any]:
        here = threading.get_ident()
        return [one for one in self.standing if one.thread.ident == here]

    def _place(self) -> int:
        """Behind what this thread has in the model already, or at the end of the queue."""
        own = self._of_this_thread()
        return self.standing.index(own[-1]) + 1 if own else len(self.standing)

    def inside(self) -> list[Any]:
        """What stands in the model, without what other threads wait to put in."""
        alive = [one.thread for one in self.standing if one.thread.is_alive()]
        return [one for one in self.standing if one.thread in alive[:1] or one.thread not in alive]

    def standing_here(self) -> Sequence[Any]:
        """What stands in the model for this thread's passes; errors as in `in_other_hands`."""
        return () if self.in_other_hands() else self.inside()

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Passes of the model itself: no hook and no change of logits of sea_lens's acts in them, or has to.

        A prefix and changed weights stay.
        """
        outer = self.aside
        try:
            self.aside = True
            yield
        finally:
            self.aside = outer

    @staticmethod
    def keep_out_of_copies(point: Any) -> None:
        """Let copies of a hook point have no hook of sea_lens's, until `remove_from` has removed all from it."""
        vars(point).setdefault("__deepcopy__", CleanCopy(point))

    def _attach(self) -> None:
        if self._stand_in is None:
            inside = getattr(self.model, "original_model", None)
            # Kept first, so that `_detach` finds them wherever an interrupt comes.
            self._stand_in = _ObservedForward(self.model if inside is None else inside, self)
            self._copies = [CleanCopy(module) for module in (self.model, inside) if module is not None]
            self._stand_in.attach()
            for copied in self._copies:
                copied.attach()

    def _detach(self) -> None:
        if self._stand_in is not None:
            self._stand_in.remove()
        for copied in self._copies:
            copied.remove()
        self._stand_in = self.current_pass = None

    def check_user(self) -> None:
        """Refuse an edit of another thread, and another task of asyncio while the one that put something in awaits.

        Raises:
            InputError: naming both.
        """
        for standing in self.standing_here():
            standing.check_task(self.name)

    def in_other_hands(self) -> bool:
        """Whether what stands in the model only measures, and for another thread.

        Raises:
            InputError: another thread has put an edit in; names both threads.
        """
        here = threading.get_ident()
        for standing in self.standing:
            if standing.thread.ident == here:
                return False
            if standing.thread.is_alive():
                if all(one.about is None for one in self.standing if one.thread is standing.thread):
                    return True
                raise InputError(
                    f"model {self.name!r} has an edit in it that thread {standing.thread.name!r} put in, and thread "
                    f"{threading.current_thread().name!r} wants to use it: expected one thread at a time while a model "
                    f"is edited, or a copy of the model for each"
                )
        return False


class _ObservedForward(ForwardStandIn):
    """Tells an observer of each pass."""

    def __init__(self, module: Any, observer: Observer) -> None:
        super().__init__(module)
        self._observer, self._hooked = observer, module is observer.model and observer.n_layers is None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        observer, outer = self._observer, self._observer.current_pass
        if not self._active or observer.in_other_hands():
            return self._forward(*args, **kwargs)
        observer.check_user()
        begun = self._hooked_pass(args, kwargs) if self._hooked else self._huggingface_pass(args, kwargs)
        begun.expected = () if observer.aside else tuple(observer.hooks)
        try:
            observer.current_pass = begun
            result = self._forward(*args, **kwargs)
        finally:
            observer.current_pass = outer
        begun.check(observer.name)
        return result

    def run(self, asked: inspect.BoundArguments) -> Any:
        return self.forward(asked)

    def _hooked_pass(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pass:
        asked = self.bound(*args, **kwargs)
        given, n_layers = asked.arguments, int(self._module.cfg.n_layers)
        start, stop = first_layer(n_layers, asked), given.get("stop_at_layer")
        tokens, mask, past = given["input"], given.get("attention_mask"), given.get("past_kv_cache")
        if start > 0:
            tokens = given.get("tokens")
        elif not isinstance(tokens, Tensor):
            # Options that TransformerLens leaves to the model's own defaults are handed on as they are.
            options = {name: given[name] for name in ("prepend_bos", "padding_side") if name in given}
            tokens = self._module.to_tokens(tokens, **options)
        read_before = 0 if past is None else int(past[0].past_keys.shape[1])
        if past is not None and read_before and tokens is not None:
            new = torch.ones(len(_rows(tokens)), _rows(tokens).shape[1]) if mask is None else mask
            mask = torch.cat([past.previous_attention_mask, new.to(past.previous_attention_mask)], 1)
        return Pass(
            _as_tokens(tokens),
            mask,
            read_before,
            range(n_layers)[start:stop],
            whole=given.get("start_at_layer") is None and stop is None,
        )

    def _huggingface_pass(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pass:
        given = self._parameters.bind_partial(self._module, *args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        tokens, past = given.get("input_ids"), given.get("past_key_values")
        get_length = getattr(past, "get_seq_length", None)
        read_before = 0 if get_length is None else int(get_length())
        n_layers, shape = self._observer.n_layers, getattr(_as_tokens(tokens), "shape", None)
        generated, self._observer.generated = self._observer.generated, None
        whole = None if shape is None else (shape[0], read_before + shape[1])
        if generated is not None and (generated.rows is None or generated.rows.shape != whole):
            generated = Generated(None, generated.prompts)
        # A pass that stops early ends by an exception.
        return Pass(
            _as_tokens(tokens),
            given.get("attention_mask"),
            read_before,
            range(self._observer.model.cfg.n_layers if n_layers is None else n_layers),
            generated=generated,
        )


def _rows(tokens: Tensor) -> Tensor:
    return tokens[None] if tokens.ndim == 1 else tokens


def _as_tokens(given: Any) -> Tensor | None:
    """Tokens with a row for each text, None where embeddings or something else was given."""
    return _rows(given) if isinstance(given, Tensor) and not given.is_floating_point() else None
