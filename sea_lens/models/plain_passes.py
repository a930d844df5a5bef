"""Passes of a plain Hugging Face model, and what its own `generate` tells of them."""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .copies import mark, stands_in
from .passes import Generated, Observer


class PlainObserver(Observer):
    """Sees every pass of a plain model while something of sea_lens's stands in it; attributes as in `Observer`.

    `generate` hands whole rows to `prepare_inputs_for_generation` before each pass, of which the pass itself gets the
    tokens that are not in the cache: so they are kept from there.
    """

    def _attach(self) -> None:
        super()._attach()
        self._prompts: int | None = None
        for name, seen in (("generate", self._begins), (_PREPARES, self._prepares)):
            if (own := getattr(self.model, name, None)) is not None and name not in vars(self.model):
                vars(self.model)[name] = _seen_by(own, seen)

    def _detach(self) -> None:
        for name in ("generate", _PREPARES):
            # What the class has comes forth again.
            if stands_in(vars(self.model).get(name)):
                del vars(self.model)[name]
        self.generated = None
        super()._detach()

    def _begins(self, *_: Any, **__: Any) -> None:
        self._prompts = None

    def _prepares(self, input_ids: Tensor, *_: Any, **__: Any) -> None:
        if self._prompts is None:
            self._prompts = input_ids.shape[1]
        self.generated = Generated(input_ids, self._prompts)


_PREPARES = "prepare_inputs_for_generation"


def _seen_by(own: Callable[..., Any], seen: Callable[..., None]) -> Callable[..., Any]:
    """A method that is seen as it is called; Hugging Face looks at its parameters, which are those of its own."""

    @functools.wraps(own)
    def called(*args: Any, **kwargs: Any) -> Any:
        seen(*args, **kwargs)
        return own(*args, **kwargs)

    return mark(called)
