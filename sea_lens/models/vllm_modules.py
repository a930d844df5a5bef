"""Functions of activations inside a vLLM model as it is built: compiled code has them too (docs/method.md 12.3).

A hook is not called by compiled code, a module's own `forward` is part of it. So the module at a site gets a class of
its own, whose `forward` is that of its class and then the function. Names and weights of modules stay as they are.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from .embedding_numbers import embedding_numbers
from .vllm_worker import Function

# By what stands in compiled code: the edit's digest and the path of the module.
_FUNCTIONS: dict[str, Function] = {}


@torch.library.custom_op("sea_lens::changed", mutates_args=())
def changed(x: Tensor, key: str) -> Tensor:
    """What a function makes of an activation, as one step that a compiler does not look into."""
    found = _FUNCTIONS[key](x)
    return x.clone() if found is None or found is x else found


@changed.register_fake
def _(x: Tensor, key: str) -> Tensor:
    return torch.empty_like(x)


def put_into(model: torch.nn.Module, functions: Mapping[str, Function], name: str) -> None:
    """Let modules give what functions make of their activations, for as long as the model lives.

    Args:
        model: vLLM's model with its weights, before it runs.
        functions: by the path of the module; of layers that this process does not hold none is needed.
        name: of all of them together; the same in every run with the same functions, and in no other.

    Raises:
        UnsupportedModelError: a module is missing.
    """
    for path, function in functions.items():
        try:
            module = model.get_submodule(path)
        except AttributeError:
            raise UnsupportedModelError(f"vLLM's {type(model).__name__} has no module {path!r}") from None
        # Another process of a pipeline has the layer.
        if type(module).__name__ == "PPMissingLayer":
            continue
        key = f"{name} {path}"
        _FUNCTIONS[key] = function
        module.__class__ = _with_function(type(module), key)


def _with_function(own: type[torch.nn.Module], key: str) -> type[torch.nn.Module]:
    def of(x: Tensor) -> Tensor:
        # Called at once where nothing is compiled, which saves the way through torch's list of operations.
        if torch.compiler.is_compiling():
            return changed(x, key)
        found = _FUNCTIONS[key](x)
        return x if found is None else found

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = own.forward(self, *args, **kwargs)
        if not isinstance(output, tuple):
            return of(output)
        # A block hands on what it adds and what it adds it to; vLLM adds them up in the next norm.
        added, stream = output
        if stream is None:
            return of(added), None
        return of(added + stream), torch.zeros_like(stream)

    return type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__})


def numbers_of(model: torch.nn.Module) -> list[float] | None:
    """Some numbers of the embedding (`embedding_numbers`), None where this process does not hold its first rows."""
    for path, module in model.named_modules():
        if path.rsplit(".", 1)[-1] in ("embed_tokens", "wte", "word_embeddings", "embed_in"):
            shard = getattr(module, "shard_indices", None)
            first = getattr(shard, "org_vocab_start_index", 0) == 0
            return embedding_numbers(getattr(module, "weight", None)) if first else None
    return None


def with_every_loader(before: Callable[[Any, Any], Any], after: Callable[[torch.nn.Module, Any, Any], None]) -> None:
    """See every model that vLLM loads in this process from now on.

    Args:
        before: called with the configuration of the engine and that of the model.
        after: called with the model too, when its weights are loaded.
    """
    model_loader = importlib.import_module("vllm.model_executor.model_loader")
    for loader in _with_subclasses(model_loader.BaseModelLoader):
        if (own := vars(loader).get("load_model")) is not None and not getattr(own, "seen", False):
            setattr(loader, "load_model", _seen(own, before, after))  # noqa: B010


def _with_subclasses(one: type) -> list[type]:
    return [one, *(below for child in one.__subclasses__() for below in _with_subclasses(child))]


def _seen(own: Callable[..., Any], before: Callable[..., Any], after: Callable[..., None]) -> Callable[..., Any]:
    def load_model(self: Any, vllm_config: Any, model_config: Any, *args: Any, **kwargs: Any) -> Any:
        before(vllm_config, model_config)
        model = own(self, vllm_config, model_config, *args, **kwargs)
        # A model that writes ahead of the one that is served writes as it is.
        after(model, vllm_config, model_config)
        return model

    load_model.seen = True  # type: ignore[attr-defined]
    return load_model
