"""An edit in every model that vLLM loads in this process (docs/method.md 12.3).

    SEA_LENS_EDIT=edit.safetensors vllm serve M

vLLM calls `register` in each of its processes by the entry point `sea_lens_vllm`, which asks for the environment
variable first.
"""

import hashlib
import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from ..edits.saved import SavedEdit
from ..errors import UnsupportedModelError
from ..models.vllm_facts import EngineFacts
from ..models.vllm_modules import numbers_of, put_into, with_every_loader
from ..models.vllm_worker import family_of
from .environment import Served, served_edits

_PUT_IN = "_sea_lens_edits"


def register(environment: Mapping[str, str] = os.environ) -> None:
    """Put the edits that the environment names into every model that vLLM loads in this process from now on.

    Raises:
        FileError: a file that holds no edit.
        InputError: options that do not fit, or an edit that no server can have.
    """
    edits = served_edits(environment)
    name = _name(edits)
    with_every_loader(partial(_mark, name=name), partial(_put, edits=edits, name=name))


class _ServedFacts(EngineFacts):
    """A model that was loaded, as edits check it."""

    def __init__(self, config: Any, model: torch.nn.Module) -> None:
        super().__init__(config)
        self.family, self._numbers = family_of(type(model).__name__), numbers_of(model)

    @property
    def embedding(self) -> list[float] | None:
        return self._numbers


def _name(edits: list[Served]) -> str:
    """What these edits, applied so, are known by in compiled code."""
    digest = hashlib.sha256()
    for one in edits:
        content = one.edit.digest if isinstance(one.edit, SavedEdit) else repr(one.edit)
        digest.update(f"{content} {dict(one.where.strengths)} {one.where.combine}\n".encode())
    return f"sea_lens {digest.hexdigest()[:16]}"


def _is_draft(vllm_config: Any, model_config: Any) -> bool:
    """Whether a model writes ahead of the one that is served: it writes as it is."""
    speculative = getattr(vllm_config, "speculative_config", None)
    drafts = getattr(speculative, "draft_model_config", None)
    return vllm_config.model_config is not model_config or (drafts is not None and drafts is model_config)


def _mark(vllm_config: Any, model_config: Any, name: str) -> None:
    """Let compiled code of this model be kept by the name of its edits: what was compiled without them is another."""
    if _is_draft(vllm_config, model_config):
        return
    given = vllm_config.additional_config
    if not isinstance(given, dict):
        raise UnsupportedModelError("vLLM has an additional_config that is no dict: an edit cannot be told of there")
    vllm_config.additional_config = {**given, "sea_lens": name}


def _put(model: torch.nn.Module, vllm_config: Any, model_config: Any, edits: list[Served], name: str) -> None:
    # A loader may call another one, which has put them in already.
    if _is_draft(vllm_config, model_config) or getattr(model, _PUT_IN, None) == name:
        return
    setattr(model, _PUT_IN, name)
    facts = _ServedFacts(vllm_config, model)
    functions: dict[str, list[Any]] = {}
    for one in edits:
        one.edit.check_fit(facts)
        for layer, alpha in one.where.strengths.items():
            path = one.edit.at.point(facts, layer)
            functions.setdefault(path, []).append(one.edit.function(layer, alpha, one.where.combine))
    put_into(model, {path: _in_turn(several) for path, several in functions.items()}, name)
    for one in edits:
        print(f"sea_lens: {facts.name} is served with {one.told}", file=sys.stderr, flush=True)


def _in_turn(functions: list[Any]) -> Any:
    """Functions one behind the other."""
    if len(functions) == 1:
        return functions[0]

    def together(x: torch.Tensor) -> torch.Tensor:
        for function in functions:
            x = function(x)
        return x

    return together
