"""What a benchmark is: items read from rows, a way to ask a model, and scores that are functions of sums over items."""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float

from .._support.text_rows import ending, read_json_list, read_rows
from ..errors import DemonstrationError, FileError, InputError
from ..measure.shared_prompts import log_probs
from ..measure.spans import Fitted, completion_spans, text_spans
from ..models.decoding import before_stop, continue_prompts, decode_continuation
from ..models.lens import Lens
from ..models.sampling import GREEDY, Sampling
from ..models.tokens import bos_token, tokenise
from ..texts.chat_prompts import ChatPrompt
from ..texts.prompts import PromptTemplate
from .hub import HubData

if TYPE_CHECKING:
    import pandas as pd

Totals = Mapping[str, Float[np.ndarray, "*draws"]]


@dataclass(frozen=True)
class Item:
    """One item of a benchmark.

    Attributes:
        row: of the file, counted from 1.
        fields: texts for the prompt.
        answers: what may follow it.
        facts: labels and groups, which go into the results as they are.
    """

    row: int
    fields: Mapping[str, str]
    answers: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """Every text in it."""
        return [x for x in (*self.fields.values(), *self.answers, *self.facts.values()) if isinstance(x, str)]


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of an item's answers.

    Attributes:
        log_probs: of each answer, in nats.
        tokens: scored in each answer.
        cut: tokens at the left of the prompt that did not fit the context, 0 where all did.
    """

    log_probs: list[float]
    tokens: list[int]
    cut: int

    def record(self) -> dict[str, Any]:
        """For an item's row of results."""
        return {"log_probs": self.log_probs, "tokens": self.tokens, "cut_tokens": self.cut}


@dataclass(frozen=True)
class Asker:
    """How a benchmark asks a model, which has the edit in it while `edited` is entered.

    Attributes:
        lens: the model.
        prompt: None for benchmarks that score whole texts.
        batch_size: rows at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        edited: the context in which the model is to be measured.
        has_edit: whether there is an edit at all.
        max_new_tokens: longest generated answer, in tokens; at most half of the context is used for it.
    """

    lens: Lens
    prompt: PromptTemplate | ChatPrompt | None
    batch_size: int
    prepend_bos: bool
    edited: Callable[[], contextlib.AbstractContextManager[Any]]
    has_edit: bool
    max_new_tokens: int

    def score(self, items: Sequence[Item]) -> list[Scored]:
        """Log-probabilities of every answer of every item, prompts shared (docs/method.md 6.1 and 6.9).

        Raises:
            DemonstrationError: an answer adds no token to its prompt; names the row.
            InputError: the chat template does not write an answer as it is; names the row.
            ActivationError: a log-probability is NaN or infinite.
        """
        return self._score(lambda: [self._completions(item) for item in items])

    def _completions(self, item: Item) -> list[Fitted]:
        assert self.prompt is not None
        try:
            prompt, answers = self.prompt.with_answers(item.fields, item.answers)
        except InputError as error:
            raise InputError(f"row {item.row}: {error}") from error
        return completion_spans(
            self.lens,
            prompt,
            answers,
            prepend_bos=self.prepend_bos,
            together=isinstance(self.prompt, ChatPrompt),
            what=f"row {item.row}",
        )

    def score_sentences(self, texts: Iterable[tuple[str, str]]) -> list[Scored]:
        """Log-likelihood of whole texts, given as (what errors call it, text); docs/method.md 6.5.

        Raises:
            DemonstrationError: a text has nothing to score; names it.
            ActivationError: a log-probability is NaN or infinite.
        """
        return self._score(
            lambda: [[text_spans(self.lens, text, prepend_bos=self.prepend_bos, what=what)] for what, text in texts]
        )

    def generate(self, items: Sequence[Item], sampling: Sampling = GREEDY) -> list[tuple[str, int]]:
        """Continuation of each item's prompt up to the prompt's stop texts, and the tokens cut from the prompt.

        A prompt that leaves no room for an answer loses tokens at its left end, BOS kept. An item that is given several
        times is continued in as many ways, where tokens are drawn.

        Raises:
            DemonstrationError: the context is too short for any prompt with an answer; names the row.
        """
        assert self.prompt is not None
        prompts, cuts = [], []
        # In the edit's context, since examples in front take room.
        with self.edited():
            new_tokens = min(self.max_new_tokens, self.lens.n_ctx // 2)
            room = self.lens.n_ctx - new_tokens
            for item in items:
                tokens = tokenise(
                    self.lens, self.prompt.render(item.fields), prepend_bos=self.prepend_bos, what=f"row {item.row}"
                )
                bos = 1 if tokens[0] == bos_token(self.lens) else 0
                if room <= bos:
                    raise DemonstrationError(f"row {item.row} has no room in a context of {self.lens.n_ctx} tokens")
                cuts.append(max(len(tokens) - room, 0))
                prompts.append([*tokens[:bos], *tokens[bos + cuts[-1] :]])
            found = continue_prompts(
                self.lens, prompts, new_tokens, batch_size=self.batch_size, stop=self.prompt.stop, sampling=sampling
            )
        texts = []
        for prompt, continuation in zip(prompts, found, strict=True):
            text = decode_continuation(self.lens, prompt, continuation)
            texts.append(before_stop(text, self.prompt.stop))
        return list(zip(texts, cuts, strict=True))

    def _score(self, tokenised: Callable[[], Sequence[Sequence[Fitted]]]) -> list[Scored]:
        with self.edited():
            # In this context, since examples in front take room.
            fitted = tokenised()
            # (item, answer, span) of everything there is to score, in one go.
            plan = [
                (item, answer, span)
                for item, answers in enumerate(fitted)
                for answer, one in enumerate(answers)
                for span in one.spans
            ]
            values = log_probs(
                self.lens, [span for _, _, span in plan], [item for item, _, _ in plan], batch_size=self.batch_size
            )
        scored = [
            Scored([0.0] * len(answers), [0] * len(answers), max((one.cut for one in answers), default=0))
            for answers in fitted
        ]
        for (item, answer, span), value in zip(plan, values.tolist(), strict=True):
            scored[item].log_probs[answer] += value
            scored[item].tokens[answer] += len(span.tokens) - span.start
        return scored


class Benchmark(ABC):
    """A benchmark: reads rows, asks, and sums up.

    Every score is a function of sums over items, so that it can be taken apart into what each item adds, ratios too
    (docs/method.md 6.7).

    Attributes:
        name: by which it is called.
        prompts: names of the fields that a prompt may use; none where whole texts are scored.
        prompt: name of the prompt that is used where none is asked for.
        scoring: whether completions are scored, for which a method must give every token a probability.
        hub: its data set on the Hugging Face hub, read where no file is given; None where a file must be.
        bounds: the smallest and the largest value that a score can have, by its name without the group, where they are
            known; its interval stays between them. Either may be infinite.
    """

    name: ClassVar[str]
    prompts: ClassVar[tuple[str, ...]] = ()
    prompt: ClassVar[str] = ""
    scoring: ClassVar[bool] = True
    hub: ClassVar[HubData | None] = None
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}

    def rows(self, path: str | os.PathLike[str]) -> Iterable[tuple[int, Any]]:
        """(row number, row) of a file, by what its name ends in: .json (a list), .csv, .tsv, else JSON Lines.

        Raises:
            FileError: a malformed file, or a plain text (.txt), which has no rows.
        """
        if ending(path) == ".txt":
            raise FileError(f"{path}: benchmark {self.name!r} reads no plain text: expected JSON Lines, .json or .csv")
        return read_json_list(path) if ending(path) == ".json" else read_rows(path)

    def for_rows(self, rows: Sequence[tuple[int, Any]]) -> "Benchmark":
        """The benchmark that reads these rows: this one, unless it knows them to be another's."""
        return self

    @abstractmethod
    def read(self, path: str, rows: Iterable[tuple[int, Any]]) -> list[Item]:
        """Items from the rows of a file; refuses a malformed row, naming it."""

    def default_prompt(self, items: Sequence[Item]) -> str:
        """Name of the prompt for these items: `prompt`, unless it depends on them."""
        return self.prompt

    @abstractmethod
    def ask(self, asker: Asker, items: Sequence[Item]) -> list[dict[str, Any]]:
        """One row of results for each item."""

    @abstractmethod
    def sums(self, items: "pd.DataFrame") -> dict[str, Float[np.ndarray, " items"]]:
        """What each item adds to the sums that the scores are made of."""

    @abstractmethod
    def scores(self, totals: Totals) -> dict[str, Float[np.ndarray, "*draws"]]:
        """The scores from the sums over items; works on many draws at once."""

    def score_names(self, items: Sequence[Item]) -> list[str] | None:
        """Names of the scores that these items give, told without a model; None where it cannot be told."""
        import pandas as pd

        try:
            sums = self.sums(pd.DataFrame(self.ask(_Nobody(), items)))
            return list(self.scores({name: column.sum(keepdims=True) for name, column in sums.items()}))
        except Exception:  # a benchmark of somebody else's may ask the model itself
            return None


class _Nobody(Asker):
    """Answers every question without a model, so that one sees what a benchmark makes of the answers."""

    def __init__(self) -> None:
        pass

    def score(self, items: Sequence[Item]) -> list[Scored]:
        return [Scored([0.0] * len(item.answers), [1] * len(item.answers), 0) for item in items]

    def score_sentences(self, texts: Iterable[tuple[str, str]]) -> list[Scored]:
        return [Scored([0.0], [1], 0) for _ in texts]

    def generate(self, items: Sequence[Item], sampling: Sampling = GREEDY) -> list[tuple[str, int]]:
        return [("", 0) for _ in items]


def ratio(
    numerator: Float[np.ndarray, "*draws"], denominator: Float[np.ndarray, "*draws"]
) -> Float[np.ndarray, "*draws"]:
    """Quotient, NaN where the denominator is 0."""
    top, bottom = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    return np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom != 0)


def in_groups(
    columns: Mapping[str, Float[np.ndarray, " items"]], groups: Mapping[str, np.ndarray]
) -> dict[str, Float[np.ndarray, " items"]]:
    """Each column within each group of items, called "column@group"; the group "" is all of them."""
    return {
        f"{name}@{group}": np.where(members, values, 0.0)
        for group, members in groups.items()
        for name, values in columns.items()
    }


def score_name(score: str, group: str) -> str:
    """A score's name within a group of items: "score/group"; just "score" for all of them."""
    return f"{score}/{group}" if group else score


def groups_of(totals: Totals) -> list[str]:
    """The groups in sums that `in_groups` made, in order."""
    return list(dict.fromkeys(name.split("@", 1)[1] for name in totals))
