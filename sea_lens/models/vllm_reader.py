"""Reading the activations of demonstrations through a vLLM engine."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import DemonstrationError
from .demonstration_texts import DemonstrationTexts
from .vllm_engine import Engine
from .vllm_worker import Read


class EngineReader:
    """Reads activations of demonstrations through an engine, as `TreeReader` does on a TransformerLens model.

    Args:
        engine: the engine.
        texts: the demonstrations.
        points: where.
        mean: whether activations are averaged over several tokens.

    Raises:
        DemonstrationError: a text that leaves no room for the token that an engine always generates; names it.
    """

    def __init__(self, engine: Engine, texts: DemonstrationTexts, points: Sequence[str], *, mean: bool) -> None:
        self._engine, self._texts, self._points, self._mean = engine, texts, tuple(points), mean
        for name, tree in zip(texts.names, texts.trees, strict=True):
            if tree.longest >= engine.n_ctx:
                raise DemonstrationError(
                    f"{name} has a text of {tree.longest} tokens, and a vLLM engine of max_model_len {engine.n_ctx} "
                    f"reads one less"
                )

    def prepare(self, numbers: Sequence[int]) -> list[int]:
        """What `read` takes; an engine has nothing to prepare."""
        return list(numbers)

    def read(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """What each text has at each point: (3 · demonstrations, d_model), three texts for each."""
        sequences: list[list[int]] = []
        reads: list[Read] = []
        lengths: list[int] = []
        for number in numbers:
            tree = self._texts.trees[number]
            for span, sequence in zip(tree.spans, tree.read_in, strict=True):
                reads.append(Read(len(sequences) + sequence, span.start, span.stop, len(reads)))
                lengths.append(span.stop - span.start)
            sequences += self._texts.sequences(number)[: len(tree.lengths)]
        found = self._engine.read(sequences, reads, self._points, len(reads), mean=self._mean)
        if not self._mean:
            return found
        return {point: sums / torch.tensor(lengths)[:, None] for point, sums in found.items()}
