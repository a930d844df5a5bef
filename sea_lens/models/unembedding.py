"""The unembedding as a function of its own, so that logits are made only where they count (docs/method.md 6.13).

A model's logits are g(x · W_U + b_U), with x what its unembedding reads and g(r) = scale · r or cap · tanh(scale · r /
cap), the same for every token. Both are measured once for each model, with the model's own modules: one pass in which
numbers of all sizes come out of the unembedding in place of its own, and what becomes of them is g. A model for which
this does not hold to rounding has no `Unembedding`, and neither has one in which something stands that may change
logits: its logits are made whole, by itself.
"""

from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from .._support.saturation import widened
from ..errors import SeaLensError
from .bare import without_hooks
from .forward_stand_in import ForwardStandIn, own_forward
from .hooks import came_with_the_model
from .lens import Lens
from .logit_hooks import changes_logits
from .standing import Held, Standing

# Of two texts: few, since each takes numbers as large as the vocabulary.
_TOKENS = 2
# Raw logits that g is measured with, in powers of ten: it is linear at the smallest, and capped at the largest.
_SMALLEST, _LARGEST = -4.0, 4.0
_LEAST_LIMIT, _ROUNDINGS = 1e-5, 2.0


@dataclass(frozen=True)
class Unembedding:
    """How a model makes logits of what its unembedding reads.

    Attributes:
        weight: W_U, a token a row.
        bias: b_U, None where there is none.
        scale: what the product is multiplied by behind the unembedding.
        cap: of the soft cap, None where there is none.
    """

    weight: Float[Tensor, "d_vocab d_model"]
    bias: Float[Tensor, " d_vocab"] | None
    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, lens: Lens) -> "Unembedding | None":
        """The unembedding of a model as it is now; None where its logits must be made whole.

        Measured when first asked for, and again where the weight or what makes the logits has been replaced.
        """
        module = getattr(lens.model, "unembed", None)
        if not isinstance(module, torch.nn.Module) or _acts_behind(lens, module):
            return None
        return _measured_once(lens, module)

    @classmethod
    def own(cls, lens: Lens) -> "Unembedding":
        """The unembedding of a model itself, whatever stands at it or behind it.

        Where it cannot be measured, it is what the weights and the configuration say, without a scale: whoever reads
        activations out with it compares them with the model's logits first.
        """
        module = getattr(lens.model, "unembed", None)
        found = _measured_once(lens, module) if isinstance(module, torch.nn.Module) else None
        return found or cls(lens.unembedding.mT, lens.unembedding_bias, cap=lens.soft_cap)

    @staticmethod
    def take_as_plain(lens: Lens) -> None:
        """Let a model's logits be x · W_U + b_U, unmeasured: for one that has no numbers to measure (`planning`)."""
        state = _State.of(lens, lens.model.unembed)
        lens.unembedding_kept = (state, Unembedding(lens.unembedding.mT, lens.unembedding_bias))

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return len(self.weight)

    def rows(self, tokens: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d_model"]:
        """What each of some tokens' logits is the product with, before the cap: scale · W_U, in float64."""
        flat = self.weight[tokens.flatten().to(self.weight.device)].double() * self.scale
        return flat.reshape(*tokens.shape, flat.shape[-1])

    def exactly(self, read: Float[Tensor, "batch d_model"], tokens: Int[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """Logits of some tokens in each row, in float64."""
        raw = einsum(read.double(), self.rows(tokens).to(read.device), "batch d, batch n d -> batch n")
        if self.bias is not None:
            raw = raw + self.scale * self.bias[tokens.to(self.bias.device)].double().to(raw.device)
        return raw if self.cap is None else self.cap * torch.tanh(raw / self.cap)

    def block(self, states: Float[Tensor, "n d_model"], start: int, stop: int) -> Float[Tensor, "n block"]:
        """Logits of some tokens in a row of the vocabulary, in float32 at least; the product is in the model's dtype.

        Args:
            states: what the unembedding reads.
            start, stop: the tokens.
        """
        given = states.to(device=self.weight.device, dtype=self.weight.dtype)
        weight, bias = self.weight[start:stop], None if self.bias is None else self.bias[start:stop]
        if weight.device.type == "cpu" and weight.dtype.itemsize == 2:
            # With a HookedTransformer's weight as it lies, (d_model, d_vocab), a CPU takes ten times as long.
            weight = weight.contiguous()
        return self._behind(torch.nn.functional.linear(given, weight, bias))

    def _behind(self, raw: Float[Tensor, "*batch block"]) -> Float[Tensor, "*batch block"]:
        wide = widened(raw)
        if self.scale != 1.0:
            wide = wide * self.scale
        return wide if self.cap is None else self.cap * torch.tanh(wide / self.cap)


@dataclass(frozen=True)
class WholeLogits:
    """Stands where an `Unembedding` does, for states that are the logits themselves."""

    d_vocab: int

    def block(self, states: Float[Tensor, "n d_vocab"], start: int, stop: int) -> Float[Tensor, "n block"]:
        """Logits of some tokens in a row of the vocabulary, in float32 at least."""
        return widened(states[:, start:stop])


class PutOff(ForwardStandIn):
    """Stands in for a model's unembedding: keeps what that would read, and answers with next to nothing.

    The pass goes on behind it, so that caches are filled and every hook is proven to have run.

    Attributes:
        read: what the unembedding was called with.
    """

    def __init__(self, lens: Lens) -> None:
        super().__init__(lens.model.unembed)
        self.read: list[Tensor] = []
        self._observer = lens.observer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What is called in place of the unembedding; a pass of another thread, which may be on its way, runs that."""
        return self._forward(*args, **kwargs) if self._observer.in_other_hands() else super().__call__(*args, **kwargs)

    def run(self, asked: Any) -> Tensor:
        """Keep the states, and give one number for each."""
        states = asked.args[1]
        self.read.append(states)
        # What stands behind may write into what it is given.
        return torch.zeros_like(states[..., :1])


class _Measuring(PutOff):
    """Runs the unembedding, and answers with other numbers in place of its own."""

    def __init__(self, lens: Lens) -> None:
        super().__init__(lens)
        self.raw: list[Tensor] = []
        self.answers: list[Tensor] = []

    def run(self, asked: Any) -> Tensor:
        super().run(asked)
        self.raw.append(self.forward(asked))
        self.answers.append(_numbers_of_all_sizes(self.raw[-1]))
        return self.answers[-1].clone()


def _numbers_of_all_sizes(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sizes = _SMALLEST + (_LARGEST - _SMALLEST) * torch.rand(like.shape, generator=generator)
    signs = 1 - 2 * torch.randint(2, like.shape, generator=generator)
    return (signs * 10.0**sizes).to(device=like.device, dtype=torch.float32)


def _acts_behind(lens: Lens, module: torch.nn.Module) -> bool:
    """Whether something stands at the unembedding, or behind it, that may change logits or wants to see them."""
    whole = [one for one in (lens.model, getattr(lens.model, "original_model", None)) if one is not None]
    if changes_logits(lens):
        return True
    if any(one._forward_hooks or one._backward_hooks for one in whole):
        return True
    return any(
        one._forward_pre_hooks
        or one._backward_hooks
        or one._backward_pre_hooks
        or any(not came_with_the_model(function) for function in one._forward_hooks.values())
        for one in module.modules()
    )


@dataclass(frozen=True, eq=False)
class _State:
    """What a measurement depends on.

    Attributes:
        parts: the tensors of the unembedding, and whatever stands in for a part of the model, each by what it is.
        facts: of the tensors, which may be given other values, dtypes and devices.
    """

    parts: tuple[Any, ...]
    facts: tuple[Any, ...]

    @classmethod
    def of(cls, lens: Lens, module: torch.nn.Module) -> "_State":
        whole = [one for one in (lens.model, getattr(lens.model, "original_model", None)) if one is not None]
        tensors = [*module.parameters(), *module.buffers()]
        standing = [_own(vars(one).get("forward")) for one in (*whole, *module.modules())]
        facts = [(tensor.dtype, tensor.device, tensor.data_ptr()) for tensor in tensors]
        return cls((module, *tensors, *standing), (*facts, lens.soft_cap))

    def is_same(self, other: "_State") -> bool:
        """Whether nothing has been replaced."""
        return (
            self.facts == other.facts
            and len(self.parts) == len(other.parts)
            and all(one is another for one, another in zip(self.parts, other.parts, strict=True))
        )


def _measured_once(lens: Lens, module: torch.nn.Module) -> Unembedding | None:
    """What was measured, unless something has been replaced since."""
    state, kept = _State.of(lens, module), lens.unembedding_kept
    if kept is None or not state.is_same(kept[0]):
        kept = (state, _measured(lens))
        # What a user's own hooks keep from being measured can be once they are gone.
        if kept[1] is not None or not _acts_behind(lens, module):
            lens.unembedding_kept = kept
    return kept[1]


def _own(top: Any) -> Any:
    return own_forward(top) if isinstance(top, ForwardStandIn) else top


def _measured(lens: Lens) -> Unembedding | None:
    tokens = torch.arange(min(_TOKENS, lens.d_vocab, lens.n_ctx))[None].expand(2, -1).contiguous()
    measuring, putting_off = _Measuring(lens), PutOff(lens)
    try:
        with torch.no_grad(), without_hooks(lens):
            # One after the other: both must leave a pass that runs to its end.
            after, emptied = (_passed(lens, one, tokens) for one in (measuring, putting_off))
            if not len(measuring.read) == len(putting_off.read) == 1:
                return None
            (read,), (raw,), (answers,) = measuring.read, measuring.raw, measuring.answers
            answers = answers[:, answers.shape[1] - tokens.shape[1] :]
            if answers.shape != after.shape or emptied.shape[:2] != after.shape[:2] or read.ndim != 3:
                return None
            bias = lens.unembedding_bias
            found = Unembedding(lens.unembedding.mT, bias, *_scale_and_cap(answers, after))
            plain = torch.cat([found.block(states, 0, found.d_vocab) for states in read])
            expected = found._behind(raw).flatten(0, 1)
            if plain.shape != expected.shape:
                return None
            right = _is_near(found._behind(answers), after, after.dtype) and _is_near(plain, expected, raw.dtype, 1.0)
            return found if right else None
    except (SeaLensError, torch.cuda.OutOfMemoryError):
        raise
    except Exception:
        # Whatever a model of others' code raises here, its logits cannot be made apart.
        return None


def _passed(lens: Lens, stand_in: PutOff, tokens: Tensor) -> Tensor:
    held = Held(Standing(lens.observer))
    with held:
        held.standing.put([stand_in])
        return lens.forward(tokens, torch.ones_like(tokens))


def _scale_and_cap(given: Tensor, after: Tensor) -> tuple[float, float | None]:
    given, after = given.double().flatten(), after.double().flatten()
    smallest, largest = given.abs().argmin(), given.abs().argmax()
    scale = float(after[smallest] / given[smallest])
    # Rounding of float32 must not make a multiplication of none.
    scale = 1.0 if abs(scale - 1) < _LEAST_LIMIT / 10 else scale
    straight = abs(float(after[largest]) - scale * float(given[largest])) <= _LEAST_LIMIT * abs(float(after[largest]))
    return scale, None if straight else float(after.abs().max())


def _is_near(given: Tensor, expected: Tensor, dtype: torch.dtype, share: float | None = None) -> bool:
    """Whether numbers agree to the rounding of a dtype: each by its size, or by this share of the largest."""
    limit = max(_LEAST_LIMIT, _ROUNDINGS * torch.finfo(dtype).eps)
    if given.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        limit = max(limit, _ROUNDINGS * 2.0**-10)
    given, expected = given.double(), expected.double()
    size = expected.abs() if share is None else share * expected.abs().max()
    return bool(((given - expected).abs() <= limit * size).all())
