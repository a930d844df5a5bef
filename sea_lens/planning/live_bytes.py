"""How much memory code takes at most, counted on tensors that have sizes and no numbers (torch's meta device).

Code runs as it is. Where it looks at a number, it sees 0 or False, and all numbers are finite, so that what depends on
numbers goes one way of those that it can go: masks count as padded, sums as close enough. Nothing is computed, and
nothing of any size is made.
"""

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_LOOK_UPS = (torch.ops.aten.embedding.default, torch.ops.aten.index.Tensor)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors without numbers that are alive, while it is entered.

    Args:
        known: tensors that are there anyhow, such as the weights of a model.
        embedding: the one of them that tokens are looked up in, once in a pass.

    Attributes:
        now: bytes that are alive, those of `known` left out.
        most: the most that were alive at once.
        passes, tokens: how often tokens were looked up, and how many.
    """

    def __init__(self, known: Iterable[Tensor] = (), embedding: Tensor | None = None) -> None:
        super().__init__()
        self.now = self.most = self.passes = self.tokens = 0
        self._embedding = None if embedding is None else _address(embedding)
        # An address may be used again only when what had it is gone.
        self._known = {_address(one): one for one in known}
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype).item()
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and _goes_to_cpu(kwargs):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func in _LOOK_UPS and _address(args[0]) == self._embedding:
            indices = args[1][0] if isinstance(args[1], (list, tuple)) else args[1]
            self.passes += 1
            self.tokens += indices.numel()
        found = func(*args, **kwargs)
        for one in tree_iter(found):
            if isinstance(one, Tensor) and one.is_meta:
                self._count(one)
        return found

    def _count(self, tensor: Tensor) -> None:
        storage, address = tensor.untyped_storage(), _address(tensor)
        if address in self._known or address in self._alive:
            return
        self._alive.add(address)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, address, size)

    def _gone(self, address: int, size: int) -> None:
        self._alive.discard(address)
        self.now -= size


class _Finite(TorchFunctionMode):
    """All numbers that are not there are finite."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.isfinite and args[0].is_meta:
            return torch.ones((), dtype=torch.bool).expand(args[0].shape)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted(known: Iterable[Tensor] = (), embedding: Tensor | None = None) -> Iterator[LiveBytes]:
    """Count what is alive for the length of a context; arguments as in `LiveBytes`."""
    with _Finite(), LiveBytes(known, embedding) as live:
        yield live


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _goes_to_cpu(options: dict[str, Any]) -> bool:
    device = options.get("device")
    return device is not None and torch.device(device).type == "cpu"
