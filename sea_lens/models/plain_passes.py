"""Passes of a plain Hugging Face model, and what its own `generate` tells of them."""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .copies import mark, stands_in
from .passes import Generated, Observer

_GENERATES, _PREPARES = "generate", "prepare_inputs_for_generation"


class PlainObserver(Observer):
    """Sees every pass of a plain model while something of sea_lens's stands in it; attributes as in `Observer`.

    `generate` is given the prompts, and hands whole rows to `prepare_inputs_for_generation` before each pass, of which
    the pass itself gets the tokens that are not in the cache: so both are kept from there. A pass that drafts ahead or
    reads a prompt in parts reads other rows; how long the prompts are is known in these too.
    """

    def __init__(self, model: Any, name: str, n_layers: int) -> None:
        super().__init__(model, name, n_layers)
        self._prompts: int | None = None
        # Methods that somebody else had put into the model.
        self._own: dict[str, Any] = {}

    def _attach(self) -> None:
        super()._attach()
        for name, seen in ((_GENERATES, self._generates), (_PREPARES, self._prepares)):
            own = getattr(self.model, name, None)
            if own is not None and not stands_in(own):
                self._own[name] = vars(self.model).get(name)
                vars(self.model)[name] = seen(own)

    def _detach(self) -> None:
        for name in (_GENERATES, _PREPARES):
            if stands_in(vars(self.model).get(name)):
                del vars(self.model)[name]
                if (own := self._own.pop(name, None)) is not None:
                    vars(self.model)[name] = own
        self.generated = None
        super()._detach()

    def _generates(self, own: Callable[..., Any]) -> Callable[..., Any]:
        # Hugging Face looks at the parameters of both methods.
        @functools.wraps(own)
        def generate(*args: Any, **kwargs: Any) -> Any:
            given = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
            outer = self._prompts
            try:
                self._prompts = given.shape[1] if isinstance(given, Tensor) and given.ndim == 2 else None
                return own(*args, **kwargs)
            finally:
                self._prompts, self.generated = outer, None

        return mark(generate)

    def _prepares(self, own: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(own)
        def prepare(input_ids: Any, *args: Any, **kwargs: Any) -> Any:
            rows = input_ids if isinstance(input_ids, Tensor) else None
            self.generated = None if self._prompts is None else Generated(rows, self._prompts)
            return own(input_ids, *args, **kwargs)

        return mark(prepare)
