"""Where a plain Hugging Face model has its sites: found by what its modules give in one pass, and proven by their sum.

Module names differ from family to family, and one name stands for different things: what Llama calls
`post_attention_layernorm` stands before the MLP, what OLMo 2 calls so stands behind attention. A block adds what
attention and the MLP give to the residual stream in every family that has these sites, and only two of its modules have
outputs that make up the difference between what enters it and what leaves it.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .configuration import text_config

_TOKENS = 6
# What other parts of a model that sees or hears call themselves; their blocks may be as many.
_OTHER_SENSES = ("vision", "visual", "image", "audio")
_ATTENTION = ("attn", "attention", "mixer")
# A module whose output closes the sum this many times less exactly than another's is not what the block adds.
_NEARLY = 4.0


class Place(NamedTuple):
    """Where an activation is in a plain model.

    Attributes:
        path: of the module, in the model.
        module: the module that gives it or, with `before`, reads it.
        before: whether it is what the module reads.
        scale: what the block multiplies it by before it adds it.
        projection: path of the module with one matrix that gives it, or with `before` reads it; None where there is
            none, as behind a norm or a mixture of experts.
    """

    path: str
    module: torch.nn.Module
    before: bool = False
    scale: float = 1.0
    projection: str | None = None

    @property
    def point(self) -> str:
        """What it is called: one module may be two places."""
        return f"{self.path} (input)" if self.before else self.path

    def inside(self, path: str) -> "Place":
        """The place of a block as one of the model that has the block at this path."""
        projection = None if self.projection is None else f"{path}.{self.projection}"
        return self._replace(path=f"{path}.{self.path}".rstrip("."), projection=projection)


@dataclass
class _Given:
    """What a module gave in the pass, as (tokens, width); and whether it read something with an axis of tokens."""

    path: str
    module: torch.nn.Module
    reads_tokens: bool
    gave: Float[Tensor, "tokens d"]

    @property
    def depth(self) -> int:
        return self.path.count(".")


def first_tensor(output: Any) -> Any:
    """The activation in what a module gives: itself, or the first of several things."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def blocks_of(model: torch.nn.Module, n_layers: int) -> tuple[str, Sequence[torch.nn.Module]] | None:
    """Path and blocks of the language model in a Hugging Face model; None where there are none of this number."""
    for path, module in model.named_modules():
        if not isinstance(module, torch.nn.ModuleList) or len(module) != n_layers:
            continue
        if not any(sense in path.lower() for sense in _OTHER_SENSES):
            return path, list(module)
    return None


def sites_of(model: Any, path: str, blocks: Sequence[torch.nn.Module]) -> list[dict[str, Place]]:
    """The places of the sites in each block, from one pass over a few tokens; a block lacks what was not proven.

    Args:
        model: the Hugging Face model, in evaluation mode.
        path, blocks: from `blocks_of`.
    """
    config = text_config(model.config)
    scale = float(getattr(config, "residual_multiplier", None) or 1.0)
    found: list[dict[str, Place]] = []
    handles = []
    try:
        for layer, block in enumerate(blocks):
            handles += _watch(block, f"{path}.{layer}", scale, found)
        tokens = torch.arange(_TOKENS, device=model.get_input_embeddings().weight.device) % config.vocab_size
        if tokens.is_meta:
            tokens = torch.arange(_TOKENS) % config.vocab_size
        with torch.no_grad():
            model(input_ids=tokens[None], attention_mask=torch.ones_like(tokens)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _watch(block: torch.nn.Module, path: str, scale: float, found: list[dict[str, Place]]) -> Iterator[Any]:
    """Hooks that keep what the modules of a block give while it runs, and find its places as it ends."""
    given: list[_Given] = []
    entered: list[Tensor] = []

    def enter(_: Any, args: Any, named: Any) -> None:
        stream = args[0] if args else named.get("hidden_states")
        entered.append(stream.detach().clone())
        given.clear()

    def keep(name: str, module: torch.nn.Module) -> Any:
        def kept(_: Any, args: Any, output: Any) -> None:
            # A module that several blocks share runs in others too.
            if not entered:
                return
            gave, read = first_tensor(output), args[0] if args else None
            stream = entered[-1]
            if isinstance(gave, Tensor) and gave.shape[-1:] == stream.shape[-1:] and gave.numel() == stream.numel():
                # A copy, since a block may add in place.
                given.append(_Given(name, module, _is_of_tokens(read), gave.detach().clone().reshape(_TOKENS, -1)))

        return kept

    def leave(_: Any, __: Any, output: Any) -> None:
        before, after = (one.reshape(_TOKENS, -1) for one in (entered.pop(), first_tensor(output).detach()))
        places = _places(before, after, given, scale)
        found.append({"resid_post": Place("", block), **places})
        found[-1] = {site: at.inside(path) for site, at in found[-1].items()}

    yield block.register_forward_pre_hook(enter, with_kwargs=True)
    for name, module in block.named_modules():
        if name:
            yield module.register_forward_hook(keep(name, module))
    yield block.register_forward_hook(leave)


def _is_of_tokens(read: Any) -> bool:
    return isinstance(read, Tensor) and read.is_floating_point() and read.numel() % _TOKENS == 0


def _places(
    before: Float[Tensor, "tokens d"], after: Float[Tensor, "tokens d"], given: Sequence[_Given], scale: float
) -> dict[str, Place]:
    """The modules of a block that give what it adds to the stream, and the one that heads are read by."""
    attention = [one for one in given if any(word in one.path.lower() for word in _ATTENTION)]
    others = [one for one in given if one not in attention]
    # Twice the spacing of numbers of this dtype, for two sums; measured where each element is.
    spacing = 4 * torch.finfo(after.dtype).eps
    added = [[first, second] for first, second in itertools.product(attention, others)]
    errors: list[tuple[float, list[_Given]]] = []
    for parts in [*added, *([one] for one in given)]:
        outputs = [scale * one.gave.to(after).float() for one in parts]
        terms = [before.float(), *outputs]
        error = (sum(terms[1:], terms[0]) - after.float()).abs()
        size = torch.stack([term.abs() for term in terms]).sum(0) + after.float().abs()
        worst = float((error / (size * spacing + torch.finfo(torch.float32).tiny)).max())
        if worst <= 1:
            errors.append((worst, parts))
    if not errors:
        return {}
    least = min(worst for worst, _ in errors)
    near = [parts for worst, parts in errors if worst <= _NEARLY * least + 0.25]
    # The outermost modules, and of these the first to run: dropout behind a module gives what that gave.
    parts = min(near, key=lambda parts: (-len(parts), sum(one.depth for one in parts)))
    found: dict[str, Place] = {}
    for one in parts:
        site = "attn_out" if one in attention else "mlp_out"
        same = [other for other in given if _is_within(other.path, one.path) and torch.equal(other.gave, one.gave)]
        projection = next((other.path for other in same if _is_projection(other.module)), None)
        found[site] = Place(one.path, one.module, scale=scale, projection=projection)
    if heads := [one for one in attention if one.reads_tokens and _is_projection(one.module)]:
        found["z"] = Place(heads[-1].path, heads[-1].module, before=True, projection=heads[-1].path)
    return found


def _is_within(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}.")


def _is_projection(module: torch.nn.Module) -> bool:
    """Whether a module multiplies what it reads with a matrix."""
    weight = getattr(module, "weight", None)
    return (isinstance(weight, Tensor) and weight.ndim == 2) or hasattr(module, "base_layer")
