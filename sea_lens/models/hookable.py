"""A model with hooks: what is put into it and taken out of it, and what is read in its passes.

Batches for `forward` and `read` are right-padded: in a causal model what stands to the right of a token cannot reach
it, so every position before the padding is exact on every backend and needs no position offsets.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError, UnsupportedModelError
from .hooks import Hook, HookFunction, came_with_the_model, hook_behind, remove_from
from .parts import Parts
from .passes import Observer
from .standing import Held, Standing

Backend = Literal["hooked", "bridge"]


class _ForwardStopped(Exception):  # noqa: N818
    """Raised from a hook to end a forward pass once everything asked for has been seen."""


class Hookable(Parts):
    """What stands in a model, and reading it.

    Attributes:
        observer: of the model's passes.
        prefixes: what stands in front of every sequence without the caller's knowledge (`models.prefix`).
    """

    observer: Observer
    prefixes: list[Any]

    @property
    def backend(self) -> Backend:
        """Which of TransformerLens's two kinds of model this is."""
        # By name, since TransformerLens 4 has no HookedTransformer; a subclass is what its parent is.
        return "hooked" if any(one.__name__.startswith("Hooked") for one in type(self.model).__mro__) else "bridge"

    @property
    def name(self) -> str:
        """The model's name as TransformerLens has it."""
        name = str(getattr(self.model.cfg, "model_name", type(self.model).__name__))
        # Where a local model lay is nobody else's concern.
        return Path(name).name if Path(name).is_absolute() else name

    @property
    def prefix_length(self) -> int:
        """Tokens of `prefixes`; they take room in the context and positions in activations."""
        return sum(len(prefix) for prefix in self.prefixes)

    def has_point(self, name: str) -> bool:
        """Whether this model has a hook point of this name."""
        return name in self.points

    def hook(self, name: str, function: HookFunction, *, prepend: bool = False, proven: bool = True) -> Hook:
        """A forward hook that maps the activation, or returns None to leave it; not yet in the model.

        Args:
            name: the hook point.
            function: what it does.
            prepend: whether it is called before the hooks that stand there already.
            proven: whether a pass that does not call it once is refused.

        Raises:
            InputError: the model has no such hook point (TransformerLens itself would ignore it in silence).
        """
        if (point := self.points.get(name)) is None:
            raise InputError(f"model {self.name!r} has no hook point {name!r}")
        return Hook(self.observer, name, point, function, prepend=prepend, proven=proven)

    def add_hook(self, name: str, function: HookFunction, *, prepend: bool = False) -> Standing:
        """Install a hook until the returned standing is removed; arguments and errors as in `hook`."""
        standing = Standing(self.observer)
        standing.put([self.hook(name, function, prepend=prepend)])
        return standing

    def remove_all(self) -> None:
        """Take out whatever sea_lens has put into the model; a user's own hooks stay."""
        for standing in self.observer.inside():
            standing.remove()
        for point in self.points.values():
            remove_from(point)

    def has_foreign_hooks(self) -> bool:
        """Whether the model has hooks that neither sea_lens nor TransformerLens installed."""
        return any(
            any(all(known is not other for other in point.fwd_hooks) for known in point.bwd_hooks)
            or any(
                hook_behind(function) is None and not came_with_the_model(function)
                for function in tuple(point._forward_hooks.values())
            )
            for point in self.points.values()
        )

    def hooks(self, functions: Iterable[tuple[str, HookFunction]], *, proven: bool = True) -> Held:
        """Hooks for the length of a context; removed also when it ends in an exception."""
        held = Held(Standing(self.observer))
        held.standing.put([self.hook(name, function, proven=proven) for name, function in functions])
        return held

    def alone(self) -> Held:
        """The model for this thread alone, for the length of a context; waits while another thread measures.

        Raises:
            InputError: an edit that another thread put in stands in the model.
        """
        return self.hooks(())

    def forward(
        self, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of right-padded tokens; `mask` is 1 on tokens and 0 on padding."""
        # Some Hugging Face models fail at making a cache that nobody asked for.
        without = {} if self.backend == "hooked" else {"use_cache": False}
        return self.model(tokens.to(self.device), attention_mask=mask.to(self.device), return_type="logits", **without)

    def read(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        names: Sequence[str],
        functions: Iterable[tuple[str, HookFunction]] = (),
        reduce: Callable[[Tensor, str], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Activations at hook points, from a forward pass that stops as soon as all have been seen.

        Args:
            tokens, mask: a right-padded batch.
            names, functions, reduce: as in `read_during`.

        Returns:
            What was kept at each hook point, the positions of a prefix left out; errors as in `read_during`.
        """
        return self.read_during(lambda: self.forward(tokens, mask), names, functions, reduce)

    def read_during(
        self,
        run: Callable[[], object],
        names: Sequence[str],
        functions: Iterable[tuple[str, HookFunction]] = (),
        reduce: Callable[[Tensor, str], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Activations at hook points, from whatever pass is run, which stops as soon as all have been seen.

        Args:
            run: runs the pass.
            names: hook points whose second axis is the position. Each is read after the hooks that already stand there
                and after `functions`.
            functions: hooks for this pass alone.
            reduce: what to keep of an activation, given it and its hook point; the whole by default.

        Returns:
            What was kept at each hook point, the positions of a prefix left out.

        Raises:
            InputError: the model has no such hook point.
            UnsupportedModelError: the pass never reaches a hook point.
        """
        seen: dict[str, Tensor] = {}

        def saver(name: str) -> HookFunction:
            def save(x: Tensor) -> None:
                x = x[:, self.prefix_length :]
                # The layers of a model may lie on several devices.
                seen[name] = (x if reduce is None else reduce(x, name)).to(self.device)
                if len(seen) == len(names):
                    raise _ForwardStopped

            return save

        reading = ((name, saver(name)) for name in names)
        with self.hooks(functions), self.hooks(reading, proven=False), contextlib.suppress(_ForwardStopped):
            run()
        missing = [name for name in names if name not in seen]
        if missing:
            raise UnsupportedModelError(f"model {self.name!r} never reached hook points {missing}")
        return seen
