"""A vLLM engine (`vllm.LLM`) behind the calls that capture and generate (docs/method.md 6.14).

The engine is handed token ids, so that a text has the same tokens as in a TransformerLens model. vLLM is imported where
it is used, and never without an engine.
"""

import contextlib
import importlib
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from ..errors import ActivationError, InputError, UnsupportedModelError
from .language_model import is_vllm_engine
from .lens import Lens
from .sampling import GREEDY, Sampling
from .vllm_facts import EngineFacts
from .vllm_modules import numbers_of
from .vllm_worker import (
    Counts,
    Function,
    Read,
    Recording,
    class_of,
    family_of,
    from_bytes,
    put_functions,
    put_recording,
    take_out_in_bytes,
)

Found = TypeVar("Found")
# Not the name that a lens is kept by.
_KEPT_AS = "_sea_lens_engine"


class Engine(EngineFacts):
    """A vLLM engine as the rest of sea_lens sees it.

    Args:
        llm: the user's `vllm.LLM`.

    Raises:
        UnsupportedModelError: an engine whose activations cannot be read; says why.
    """

    def __init__(self, llm: Any) -> None:
        self._llm, self._salt = llm, ""
        config = llm.llm_engine.vllm_config
        super().__init__(config)
        if why := _unreadable(config):
            raise UnsupportedModelError(f"the activations of this vLLM engine cannot be read: {why}")
        self.family = family_of(self._apply(class_of)[0])
        self._embedding = self._apply(numbers_of)[0]

    @property
    def embedding(self) -> list[float] | None:
        """Some numbers of its embedding."""
        return self._embedding

    @classmethod
    def of(cls, llm: Any) -> "Engine":
        """The engine of this `vllm.LLM`, made once."""
        kept = vars(llm)
        if _KEPT_AS not in kept:
            kept[_KEPT_AS] = cls(llm)
        return kept[_KEPT_AS]

    def read(
        self,
        sequences: Sequence[Sequence[int]],
        reads: Sequence[Read],
        points: Sequence[str],
        texts: int,
        *,
        mean: bool,
    ) -> dict[str, Tensor]:
        """Activations of texts, by point, each (texts, d_model) on the CPU.

        Args:
            sequences: tokens to run.
            reads: what is kept of them: one token for each text, or with `mean` the sum of several, in float64.
            points: from `point`.
            texts: how many texts there are.
            mean: whether activations are summed.

        Raises:
            InputError: the engine is busy with requests of somebody else.
            UnsupportedModelError: the engine did not read what it should, so that nothing is known.
        """
        found: dict[str, Tensor] = {}
        number_of: dict[tuple[int, ...], int] = {}
        for sequence in map(tuple, sequences):
            number_of.setdefault(sequence, len(number_of))
        distinct = list(number_of)
        numbered = [read._replace(sequence=number_of[tuple(sequences[read.sequence])]) for read in reads]
        # Together no more than one pass holds, so that none is cut in two where it could be taken for another.
        for group in _groups(list(map(len, distinct)), self.tokens_per_pass, self.texts_per_pass):
            inside = range(len(distinct))[group]
            of_group = [
                read._replace(sequence=read.sequence - inside.start) for read in numbered if read.sequence in inside
            ]
            recording = Recording(distinct[group], of_group, texts, mean=mean)
            for point, values in self._recorded(recording, distinct[group], points).items():
                # Made anew, since what was made in inference mode could be part of no backward pass.
                found[point] = found[point] + values if point in found else values.clone()
        return found

    def _recorded(
        self, recording: Recording, sequences: Sequence[tuple[int, ...]], points: Sequence[str]
    ) -> dict[str, Tensor]:
        with self._standing(partial(put_recording, recording=recording, points=tuple(points)), points) as left:
            # A name of its own, so that no part of a text comes from the cache.
            prompts = [{"prompt_token_ids": list(one), "cache_salt": uuid.uuid4().hex} for one in sequences]
            self._run(prompts, [{"max_tokens": 1, "temperature": 0.0}] * len(prompts))
        (_, complete, found), *_ = left
        if not complete:
            raise UnsupportedModelError(
                f"the vLLM engine of {self.name!r} did not read every token of a text in order, so that activations "
                f"cannot be told apart: expected one without limits on how much of a prompt is read at a time "
                f"(long_prefill_token_threshold) and without embeddings as prompts"
            )
        return found

    @contextlib.contextmanager
    def edited(self, makers: Mapping[str, Callable[[], Function]]) -> Iterator[None]:
        """The engine with functions of activations in it, for the length of a context.

        Args:
            makers: by point, what makes the function in each worker; it can be pickled.

        Raises:
            InputError: the engine is busy with requests of somebody else.
            UnsupportedModelError: a function cannot be sent to the workers, or was not called in every pass.
        """
        with self._standing(partial(put_functions, makers=dict(makers)), list(makers)):
            # What is in the cache under another name, was computed without the functions or with others.
            self._salt = uuid.uuid4().hex
            try:
                yield
            finally:
                self._salt = ""

    def continue_prompts(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        stop: Sequence[str] = (),
        sampling: Sampling = GREEDY,
    ) -> list[list[int]]:
        """Continuations in tokens, with the token that ends them; drawn, if at all, by vLLM's own sampler.

        Raises:
            InputError: the engine is busy with requests of somebody else.
            ActivationError: the model's logits are NaN, or all infinite; names the prompt.
        """
        options = {
            "max_tokens": max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # The end tokens are those that a TransformerLens model has.
            "stop_token_ids": sorted(self.ends),
            "ignore_eos": True,
            # Whether logits are numbers is seen by their sum alone.
            "logprobs": 0,
        }
        if sampling.top_k is not None:
            options["top_k"] = sampling.top_k
        if stop:
            options |= {"stop": list(stop), "skip_special_tokens": False}
        named = {"cache_salt": self._salt} if self._salt else {}
        found = self._run(
            [{"prompt_token_ids": list(prompt), **named} for prompt in prompts],
            [{**options, "seed": seed} if sampling.temperature else options for seed in sampling.seeds(prompts)],
        )
        for row, one in enumerate(found):
            if not math.isfinite(one.cumulative_logprob):
                raise ActivationError(f"prompt {row}: the model's logits for its next token are NaN or infinite")
        return [list(one.token_ids) for one in found]

    def _run(self, prompts: Sequence[dict[str, Any]], options: Sequence[Mapping[str, Any]]) -> list[Any]:
        """What the engine makes of some prompts, one for each."""
        params = [importlib.import_module("vllm").SamplingParams(**one, detokenize="stop" in one) for one in options]
        if not prompts:
            return []
        self._refuse_busy()
        return [one.outputs[0] for one in self._llm.generate(list(prompts), params, use_tqdm=False)]

    @contextlib.contextmanager
    def _standing(self, put: Callable[[Any], None], points: Sequence[str]) -> Iterator[list[Any]]:
        """Hooks in the workers for the length of a context; what they leave behind is in the list afterwards."""
        self._refuse_busy()
        left: list[Any] = []
        try:
            self._apply(put)
            yield left
        finally:
            left += map(from_bytes, self._apply(take_out_in_bytes))
        for counts, *_ in left:
            self._prove(counts, points)

    def _prove(self, counts: Counts, points: Sequence[str]) -> None:
        """Refuse what was computed by code that passed by the hooks."""
        if silent := [point for point in points if counts.calls.get(point, 0) != counts.passes]:
            raise UnsupportedModelError(
                f"the vLLM engine of {self.name!r} made {counts.passes} passes in which hooks on {silent[0]} were "
                f"called {counts.calls.get(silent[0], 0)} times: expected vllm.LLM(…, enforce_eager=True)"
            )

    def _refuse_busy(self) -> None:
        if self._llm.llm_engine.has_unfinished_requests():
            raise InputError(
                f"the vLLM engine of {self.name!r} has requests that are not finished: expected one that nothing else "
                f"uses meanwhile"
            )

    def _apply(self, function: Callable[[Any], Found]) -> list[Found]:
        """What a function gives in each worker.

        Raises:
            UnsupportedModelError: it cannot be sent to them.
        """
        try:
            return self._llm.apply_model(function)
        except TypeError as error:
            if "serializ" not in str(error):
                raise
            raise UnsupportedModelError(
                "the vLLM engine runs in another process, and hooks may not be sent there: expected the environment "
                "variable VLLM_ALLOW_INSECURE_SERIALIZATION=1, or VLLM_ENABLE_V1_MULTIPROCESSING=0, before the engine "
                "is made"
            ) from error


def language_model(model: Any) -> Lens | Engine:
    """A TransformerLens model or a vLLM engine as the rest of sea_lens sees it.

    Raises:
        UnsupportedModelError: it is neither, or an engine whose activations cannot be read.
    """
    return Engine.of(model) if is_vllm_engine(model) else Lens.of(model)


def _unreadable(config: Any) -> str | None:
    """Why the activations of an engine with this configuration cannot be read."""
    parallel = config.parallel_config
    if not config.model_config.enforce_eager:
        return "its model is compiled, and compiled code passes by hooks: expected vllm.LLM(…, enforce_eager=True)"
    if config.model_config.runner_type != "generate":
        return f"it is a runner of kind {config.model_config.runner_type!r}: expected one that generates"
    if parallel.pipeline_parallel_size > 1 or parallel.data_parallel_size > 1:
        return "its layers or its requests are spread over devices: expected tensor_parallel_size alone"
    if config.speculative_config is not None:
        return "another model writes ahead of it: expected one without speculative decoding"
    return None


def _groups(lengths: Sequence[int], tokens: int, most: int) -> Iterator[slice]:
    """Neighbours of together at most so many tokens, and at most so many; a longer one is a group by itself."""
    start = held = 0
    for place, length in enumerate(lengths):
        if place > start and (held + length > tokens or place - start == most):
            yield slice(start, place)
            start, held = place, 0
        held += length
    if lengths:
        yield slice(start, len(lengths))
