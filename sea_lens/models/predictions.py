"""What a pass predicts; logits are made where somebody asks for them, in parts of the vocabulary (docs/method.md 6.13).

Nothing of size (batch, pos, vocabulary) is made, unless a model's logits cannot be made apart from its pass
(`models.unembedding`). Gradients reach activations; what the parts of the vocabulary need is then computed once more in
the backward pass instead of being kept.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import UnsupportedModelError
from .lens import Lens
from .standing import Held, Standing
from .unembedding import PutOff, Unembedding, WholeLogits
from .vocabulary_parts import vocabulary_parts

# Positions whose logits are made together, so that a weight that is read once serves many of them.
_TOGETHER = 512
# Of logits that are there already, numbers that are copied together.
_COPIED = 2**21


@dataclass(frozen=True)
class Predictions:
    """Next-token predictions at every position that a pass has read.

    Attributes:
        states: what the unembedding reads; the logits themselves where they had to be made whole.
        unembedding: makes logits of the states.
    """

    states: Float[Tensor, "batch pos width"]
    unembedding: Unembedding | WholeLogits

    @property
    def _together(self) -> int:
        copied = isinstance(self.unembedding, WholeLogits)
        return max(1, _COPIED // self.unembedding.d_vocab) if copied else _TOGETHER

    def rearranged(self, change: Callable[[Tensor], Tensor]) -> "Predictions":
        """The predictions at other rows and positions, which a change of the first two axes of states chooses."""
        return Predictions(change(self.states), self.unembedding)

    def whole(self) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits everywhere, in float32 at least."""
        flat = self.unembedding.block(self.states.flatten(0, 1), 0, self.unembedding.d_vocab)
        return flat.unflatten(0, self.states.shape[:2])

    def parts(
        self, row: Int[Tensor, " n"], position: Int[Tensor, " n"]
    ) -> Iterator[tuple[int, int, Float[Tensor, "n part"]]]:
        """Logits at some positions of some rows, a part of the vocabulary after the other, as (start, stop, logits)."""
        states = self._at(row, position)
        # Whoever compares them has several tensors of a part's size.
        for start, stop in vocabulary_parts(4 * len(states), self.unembedding.d_vocab, states.device):
            yield start, stop, self.unembedding.block(states, start, stop)

    def logits(self, row: Int[Tensor, " n"], position: Int[Tensor, " n"]) -> Float[Tensor, "n d_vocab"]:
        """Logits at some positions of some rows, in float32 at least."""
        return self.unembedding.block(self._at(row, position), 0, self.unembedding.d_vocab)

    def last(self) -> Float[Tensor, "batch d_vocab"]:
        """Logits at the last position, in float32 at least."""
        return self.unembedding.block(self.states[:, -1], 0, self.unembedding.d_vocab)

    def log_probs(
        self, row: Int[Tensor, " n"], position: Int[Tensor, " n"], token: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Log p(token | row up to and with position), in float32 at least; differentiable."""
        return self.scores(row, position, token)[0]

    def scores(
        self, row: Int[Tensor, " n"], position: Int[Tensor, " n"], token: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        """`log_probs`, and whether no other token is more probable."""
        # Of tokens that are asked for at one position, all but the first cost next to nothing.
        places, which = torch.unique(torch.stack([row, position]), dim=1, return_inverse=True)
        order = which.argsort(stable=True)
        counts = torch.bincount(which, minlength=places.shape[1])
        found: list[tuple[Tensor, Tensor]] = []
        begun, together = 0, self._together
        for start in range(0, places.shape[1], together):
            stop = min(start + together, places.shape[1])
            ended = begun + int(counts[start:stop].sum())
            asked = order[begun:ended]
            found.append(self._scores(self._at(*places[:, start:stop]), which[asked] - start, token[asked]))
            begun = ended
        log_probs, best = (torch.cat(part) for part in zip(*found, strict=True))
        back = order.argsort().to(log_probs.device)
        return log_probs[back], best[back]

    def _scores(
        self, states: Float[Tensor, "places width"], which: Int[Tensor, " n"], token: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        d_vocab, device = self.unembedding.d_vocab, states.device
        which, token = which.to(device), token.to(device)
        parts = list(vocabulary_parts(len(states), d_vocab, device))
        # Kept for the backward pass, all parts together would be the logits that are not to be made.
        again = len(parts) > 1 and torch.is_grad_enabled() and states.requires_grad
        sums, largest = (_by_part(parts, len(states), states) for _ in range(2))
        picked = _by_part(parts, len(which), states)
        for at, (start, stop) in enumerate(parts):
            arguments = (states, which, token, start, stop)
            sums[at], largest[at], picked[at] = (
                checkpoint(self._of_block, *arguments, use_reentrant=False, preserve_rng_state=False)
                if again
                else self._of_block(*arguments)
            )
        own = picked.sum(0)
        return own - sums.logsumexp(0)[which], own >= largest.amax(0)[which]

    def _of_block(
        self,
        states: Float[Tensor, "places width"],
        which: Int[Tensor, " n"],
        token: Int[Tensor, " n"],
        start: int,
        stop: int,
    ) -> tuple[Float[Tensor, " places"], Float[Tensor, " places"], Float[Tensor, " n"]]:
        """Log of the sum of exponentials and the largest of a part's logits, and the wanted ones that are in it."""
        logits = self.unembedding.block(states, start, stop)
        inside = (token >= start) & (token < stop)
        own = logits[which, (token - start).clamp(0, stop - start - 1)]
        return logits.logsumexp(-1), logits.detach().amax(-1), torch.where(inside, own, 0.0)

    def divergence(
        self, other: "Predictions", row: Int[Tensor, " n"], position: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """KL(these ‖ others) at some positions, in nats, float64 on the CPU, without gradient.

        Σ p (log p − log q) is made of the same sum within each part of the vocabulary and the weight of the part.
        """
        together = min(self._together, other._together)
        parts = [slice(start, start + together) for start in range(0, len(row), together)]
        with torch.no_grad():
            return torch.cat([self._divergence(other, row[part], position[part]) for part in parts])

    def _divergence(self, other: "Predictions", row: Tensor, position: Tensor) -> Float[Tensor, " n"]:
        mine, others = self._at(row, position), other._at(row, position)
        # Several tensors of a part's size stand side by side here.
        parts = list(vocabulary_parts(4 * len(mine), self.unembedding.d_vocab, mine.device))
        own_sums, other_sums, differences = (_by_part(parts, len(mine), mine) for _ in range(3))
        for at, (start, stop) in enumerate(parts):
            p, q = self.unembedding.block(mine, start, stop), other.unembedding.block(others, start, stop)
            own_sums[at], other_sums[at] = p.logsumexp(-1), q.logsumexp(-1)
            # What has no probability contributes nothing.
            differences[at] = torch.where(p.isneginf(), 0.0, p.softmax(-1) * (p - q)).sum(-1)
        own, others, differences = (x.cpu().double() for x in (own_sums, other_sums, differences))
        return (own.softmax(0) * differences).sum(0) - own.logsumexp(0) + others.logsumexp(0)

    def _at(self, row: Int[Tensor, " n"], position: Int[Tensor, " n"]) -> Float[Tensor, "n width"]:
        return self.states[row.to(self.states.device), position.to(self.states.device)]


def _by_part(parts: Sequence[tuple[int, int]], n: int, like: Tensor) -> Float[Tensor, "parts n"]:
    """Room for what each part of the vocabulary gives."""
    # Made at once: small tensors between large ones would keep the memory of these from being used again.
    return torch.empty(len(parts), n, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))


class _Predicted:
    """Makes predictions of what a pass with its unembedding put off returned."""

    def __init__(self, lens: Lens, unembedding: Unembedding | None, stand_in: PutOff | None) -> None:
        self._lens, self._unembedding, self._stand_in = lens, unembedding, stand_in

    def __call__(self, returned: Float[Tensor, "batch pos width"]) -> Predictions:
        """The predictions, from what the pass returned as its logits.

        Raises:
            UnsupportedModelError: the unembedding was called several times.
        """
        read = [] if self._stand_in is None else self._stand_in.read
        if self._unembedding is None or not read:
            return Predictions(returned, WholeLogits(returned.shape[-1]))
        if len(read) > 1:
            raise UnsupportedModelError(f"model {self._lens.name!r} called its unembedding {len(read)} times in a pass")
        # A prefix stands in front of the positions that come back.
        states = read[0][:, read[0].shape[1] - returned.shape[1] :]
        return Predictions(states.to(self._unembedding.weight.device), self._unembedding)


@contextlib.contextmanager
def unembedding_put_off(lens: Lens) -> Iterator[Callable[[Any], Predictions]]:
    """One pass that makes no logits, where the model allows it.

    Yields:
        What makes `Predictions` of that which the pass returned as its logits.
    """
    with lens.alone():
        unembedding = Unembedding.of(lens)
        if unembedding is None:
            yield _Predicted(lens, None, None)
            return
        stand_in, held = PutOff(lens), Held(Standing(lens.observer))
        with held:
            held.standing.put([stand_in])
            yield _Predicted(lens, unembedding, stand_in)


def predict(lens: Lens, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]) -> Predictions:
    """What a model predicts behind every token of a right-padded batch; `mask` is 1 on tokens and 0 on padding."""
    with unembedding_put_off(lens) as predicted:
        return predicted(lens.forward(tokens, mask))
