"""What runs inside the workers of a vLLM engine: where activations are, and hooks that read or change them there.

A worker puts the tokens of all texts that it reads together one behind the other, in passes of the engine's choosing,
so that an activation is (tokens, d_model). Which text a token belongs to is told by what vLLM hands to every model, the
tokens and their positions, and by nothing that differs between its versions.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from ..errors import UnsupportedModelError

_KEPT_AS = "_sea_lens"
# What changes an activation, or gives None and leaves it.
Function = Callable[[Tensor], Tensor | None]


class Family(NamedTuple):
    """Where the models of a family have the sites.

    Attributes:
        blocks: path of the blocks.
        mlp_out, attn_out: the module of a block that gives the activation.
    """

    blocks: str
    mlp_out: str
    attn_out: str

    @property
    def norms_behind(self) -> list[str]:
        """The sites that a norm stands in front of."""
        return [site for site in ("mlp_out", "attn_out") if getattr(self, site).endswith("norm")]

    def point(self, site: str, layer: int) -> str:
        """Path of the module that gives a site's activation in a layer.

        Raises:
            UnsupportedModelError: a site that is not read there.
        """
        inside = {"mlp_out": f".{self.mlp_out}", "attn_out": f".{self.attn_out}", "resid_post": ""}
        if site not in inside:
            raise UnsupportedModelError(
                f"in a vLLM engine {site!r} is neither read nor edited: expected one of {', '.join(inside)}"
            )
        return f"{self.blocks}.{layer}{inside[site]}"


_PLAIN = Family("model.layers", "mlp", "self_attn")
# By the class that vLLM runs. Behind a norm where what enters the residual stream is behind one.
FAMILIES = {
    "GPT2LMHeadModel": Family("transformer.h", "mlp", "attn"),
    "GemmaForCausalLM": _PLAIN,
    "Gemma2ForCausalLM": Family("model.layers", "post_feedforward_layernorm", "post_attention_layernorm"),
    "LlamaForCausalLM": _PLAIN,
    "MistralForCausalLM": _PLAIN,
    "Qwen2ForCausalLM": _PLAIN,
    "Qwen3ForCausalLM": _PLAIN,
}


def family_of(name: str) -> Family:
    """Where the models of a class of vLLM's have the sites.

    Raises:
        UnsupportedModelError: it is not known.
    """
    if name not in FAMILIES:
        raise UnsupportedModelError(
            f"where vLLM's {name} has its activations is not known: expected one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


class Counts(NamedTuple):
    """How many passes a worker has made, and how often each hook was called."""

    passes: int
    calls: dict[str, int]


class WorkerHooks:
    """Hooks on modules of a worker's model.

    Args:
        model: vLLM's model.
        functions: by the path of the module, what is done to its activation.
        begin: called with the tokens and positions of each pass.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        functions: Mapping[str, Function],
        begin: Callable[[Tensor, Tensor], None] | None = None,
    ) -> None:
        self._begin, self._passes, self._calls = begin, 0, Counter[str]()
        self._handles = [model.register_forward_pre_hook(self._before, with_kwargs=True)]
        for path, function in functions.items():
            module = model.get_submodule(path)
            self._handles.append(module.register_forward_hook(partial(self._behind, path, function)))

    @property
    def counts(self) -> Counts:
        """What has been called so far."""
        return Counts(self._passes, dict(self._calls))

    def remove(self) -> None:
        """Take the hooks out."""
        for handle in self._handles:
            handle.remove()

    def _before(self, _: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        self._passes += 1
        if self._begin is not None:
            given = dict(zip(("input_ids", "positions"), args, strict=False)) | dict(named)
            self._begin(given["input_ids"], given["positions"])

    def _behind(self, path: str, function: Function, _: Any, args: Any, output: Any) -> Any:
        self._calls[path] += 1
        if not isinstance(output, tuple):
            return function(output)
        # A block hands on what it adds and what it adds it to; vLLM adds them up in the next norm.
        added, stream = output
        changed = function(added + stream)
        return None if changed is None else (changed, torch.zeros_like(stream))


class Read(NamedTuple):
    """Tokens of a sequence that count towards one text."""

    sequence: int
    start: int
    stop: int
    text: int


class Recording:
    """Activations of some texts, from whatever passes they are read in.

    Args:
        sequences: the tokens that the engine was given, each once, and none of them read from a cache.
        reads: what is kept of them.
        texts: how many texts there are.
        mean: whether activations of several tokens are summed, in float64.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], reads: Sequence[Read], texts: int, *, mean: bool) -> None:
        self._sequences = [tuple(sequence) for sequence in sequences]
        self._numbers = {sequence: number for number, sequence in enumerate(self._sequences)}
        self._reads: list[list[Read]] = [[] for _ in sequences]
        for read in reads:
            self._reads[read.sequence].append(read)
        self._texts, self._mean = texts, mean
        self._seen = [0] * len(sequences)
        self._places, self._to = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        self.kept: dict[str, Float[Tensor, "texts d_model"]] = {}

    @property
    def complete(self) -> bool:
        """Whether every token of every sequence has been seen once."""
        return self._seen == [len(sequence) for sequence in self._sequences]

    def begin(self, tokens: Tensor, positions: Tensor) -> None:
        """Find out what of a pass is kept."""
        given, at = tokens.tolist(), positions.tolist()
        kept: list[tuple[int, int]] = []
        for start, stop in _runs(at):
            if (number := self._sequence_of(tuple(given[start:stop]), at[start])) is None:
                continue
            begun, end = at[start], at[start] + stop - start
            self._seen[number] = end
            for read in self._reads[number]:
                inside = range(max(read.start, begun), min(read.stop, end))
                kept += [(start + place - begun, read.text) for place in inside]
        self._places, self._to = torch.tensor(kept, dtype=torch.int64, device=tokens.device).reshape(-1, 2).unbind(1)

    def keep(self, point: str, x: Float[Tensor, "tokens d_model"]) -> None:
        """Keep what is wanted of an activation."""
        values = x[self._places]
        if self._mean:
            values = values.double()
        if point not in self.kept:
            self.kept[point] = values.new_zeros(self._texts, values.shape[-1])
        self.kept[point].index_add_(0, self._to, values)

    def _sequence_of(self, tokens: tuple[int, ...], begun: int) -> int | None:
        """The sequence that has these tokens from here on; None where none has, or several have.

        A long one comes in several passes.
        """
        number = self._numbers.get(tokens)
        if begun == 0 and number is not None and self._seen[number] == 0:
            return number
        end = begun + len(tokens)
        fitting = [
            number
            for number, sequence in enumerate(self._sequences)
            if self._seen[number] == begun < len(sequence) and sequence[begun:end] == tokens
        ]
        return fitting[0] if len(fitting) == 1 else None


def _runs(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where positions go on one by one: (start, stop) of each run."""
    start = 0
    for place in range(1, len(positions) + 1):
        if place == len(positions) or positions[place] != positions[place - 1] + 1:
            yield start, place
            start = place


# What `apply_model` runs.


def class_of(model: torch.nn.Module) -> str:
    """The class that vLLM runs."""
    return type(model).__name__


def put_functions(model: torch.nn.Module, makers: Mapping[str, Callable[[], Function]]) -> None:
    """Put functions of activations into the model, made in the worker, since most cannot be sent there."""
    take_out(model)
    vars(model)[_KEPT_AS] = WorkerHooks(model, {point: make() for point, make in makers.items()}), None


def put_recording(model: torch.nn.Module, recording: Recording, points: Sequence[str]) -> None:
    """Let a recording read the model."""
    take_out(model)
    hooks = WorkerHooks(model, {point: partial(recording.keep, point) for point in points}, recording.begin)
    vars(model)[_KEPT_AS] = hooks, recording


def take_out(model: torch.nn.Module) -> tuple[Counts, bool, dict[str, Tensor]] | None:
    """Take out what was put in: what was called, whether all was read, and what; None where there was nothing."""
    if (found := vars(model).pop(_KEPT_AS, None)) is None:
        return None
    hooks, recording = found
    hooks.remove()
    if recording is None:
        return hooks.counts, True, {}
    return hooks.counts, recording.complete, {point: x.cpu() for point, x in recording.kept.items()}


def take_out_in_bytes(model: torch.nn.Module) -> list[Any]:
    """`take_out` as what comes from another process as it was: text, a truth value, and a file's bytes."""
    if (found := take_out(model)) is None:
        return []
    counts, complete, kept = found
    return [json.dumps(counts), complete, save({point: x.contiguous() for point, x in kept.items()})]


def from_bytes(left: Sequence[Any]) -> tuple[Counts, bool, dict[str, Tensor]] | None:
    """What `take_out` gave in the worker."""
    if not left:
        return None
    counts, complete, kept = left
    return Counts(*json.loads(counts)), complete, load(kept)
