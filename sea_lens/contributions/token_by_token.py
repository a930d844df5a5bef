"""What an edit does to each token of what the model writes, layer by layer (docs/method.md 7.7)."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._support.arguments import as_integer, given
from .._support.processes import mine, summed
from .._support.progress import tracked
from ..edits.base import Edit, as_edit
from ..edits.generation import generate
from ..edits.seen import warn_of_overlap
from ..edits.where import LayerChoice, Positions, Strength, Where
from ..errors import DemonstrationError, InputError, SeaLensWarning
from ..measure.effects import checked_controls, control_places
from ..measure.scorer import Scorer, ScoringBatch
from ..measure.spans import check_log_probs
from ..models.lens import Lens
from ..models.predictions import predict
from ..models.token_positions import telling
from ..models.tokens import encode_completion
from .games import METHODS, Coalition, Game, Worths, check_parts
from .study import with_control
from .token_results import TextTokens, TokenContributions


def token_contributions(
    model: Any,
    edit: Edit,
    prompts: str | Iterable[str],
    continuations: Iterable[str] | None = None,
    method: str = "shapley",
    layers: LayerChoice | None = None,
    strength: Strength | None = None,
    combine: str | None = None,
    positions: Positions | None = None,
    *,
    max_new_tokens: int = 16,
    batch_size: int = 16,
    prepend_bos: bool = True,
    permutations: int = 64,
    seed: int = 0,
    control: Iterable[Edit] = (),
    progress: bool = False,
) -> TokenContributions:
    """What each layer of an edit adds to the log-probability of each token of a continuation (docs/method.md 7.7).

    Args:
        model: a TransformerLens model.
        edit: an edit of any method.
        prompts: texts.
        continuations: what follows each; by default what the edited model writes, greedily.
        method: "shapley" (sums to each token's change), "leave_one_out" or "only_one", as in `layer_contributions`.
        layers, strength, combine, positions: as in `applied`.
        max_new_tokens: longest continuation in tokens, where the model writes it.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
        permutations, seed: as in `layer_contributions`.
        control: edits to measure beside this one, such as `sl.permuted` ones. On continuations that are given all are
            measured on the same texts. Otherwise each writes its own, and the change of these as a whole stands beside
            the effect: a text that this edit has chosen is one that it makes more probable, and other edits hardly
            do, so that tokens and layers have no p-values there.
        progress: show a progress bar.

    Returns:
        Values in nats by layer and place, with every token of every text: what the unedited model prefers there, its
        log-probability before and after, and what each layer adds.

    Raises:
        InputError: an unknown method, prompts or continuations that are no texts, or other than one continuation for
            each prompt.
        DemonstrationError: no prompts, none that is continued by anything under the edit or under a control, or a given
            continuation without tokens.
        Otherwise as `generate` and `layer_contributions`.

    Warns:
        SeaLensWarning: some prompts are left out, since the edited model writes nothing behind them; says how many.

    Example:
        >>> edit = sl.fit(sl.capture(bed.model, bed.demonstrations), rank=12)
        >>> prompts = [one.prompt for one in bed.contrasts["dev"][:4]]
        >>> found = sl.token_contributions(bed.model, edit, prompts, max_new_tokens=2)
        >>> found.layers, found.closure_error < 1e-9
        ((0, 1, 2), True)
        >>> list(found.tokens_frame().columns)[:7]
        ['prompt', 'place', 'token', 'preferred', 'before', 'after', 'change']
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    edit, control = as_edit(edit), checked_controls(control)
    drawn = {"permutations": as_integer(permutations, "permutations", least=1), "seed": as_integer(seed, "seed")}
    asked = _texts(prompts, "prompts")
    if not asked:
        raise DemonstrationError("expected at least one prompt")
    pairs = None if continuations is None else _given(asked, _texts(continuations, "continuations"))
    max_new_tokens = as_integer(max_new_tokens, "max_new_tokens", least=1)
    where = edit.check(model, layers, strength, combine, positions, scoring=True)
    places = [(one, one.check(model, **control_places(one, where, combine), scoring=True)) for one in control]
    for one, at in [(edit, where), *places]:
        check_parts(one, model, at, scoring=True)
    warn_of_overlap(edit, asked, "prompts")
    common: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos}

    def written(one: Edit, at: Where, who: str) -> _Texts:
        with one.put(model, at):
            found = generate(model, asked, max_new_tokens=max_new_tokens, **common)
        return _Texts.of(Lens.of(model), _continued(asked, found, who), **common)

    if pairs is None:
        # All write before anything is measured, so that one that writes nothing is found at once.
        texts = written(edit, where, "the edited model")
        of_controls = [written(one, at, f"the model under control edit {i}") for i, (one, at) in enumerate(places)]
    else:
        texts, of_controls = _Texts.of(Lens.of(model), pairs, **common), []
    unedited, preferred = texts.log_probs(), texts.preferred()

    def measure(one: Edit, at: Where) -> TokenContributions:
        def worths(sets: Sequence[Coalition], what: str) -> Worths:
            found = {}
            for some in tracked(sets, what, len(sets), show=progress):
                alone = at.with_strengths({layer: s for layer, s in at.strengths.items() if layer in some})
                with one.put(model, alone):
                    found[some] = texts.log_probs()
            return found

        game = Game(at.layers, worths, {frozenset(): unedited})
        values, told = game.values(method, **drawn)
        edited = game.measured(method, [game.everybody])[game.everybody]
        return TokenContributions(
            method,
            texts.table(values).movedim(2, 1),
            texts.table(edited - unedited).sum(1),
            layers=at.layers,
            texts=texts.told(unedited, edited, preferred),
            # Sampled orders err by token, and the table is of places.
            details={name: value for name, value in told.items() if name != "sampling_errors"},
        )

    if pairs is not None:
        return with_control(measure(edit, where), [measure(one, at) for one, at in places])
    found = replace(measure(edit, where), own_texts=True)
    if not places:
        return found
    effects = [own.change(model, one, at).mean() for own, (one, at) in zip(of_controls, places, strict=True)]
    return replace(found, control_effects=torch.stack(effects))


def _texts(given_texts: Any, name: str) -> list[str]:
    """One text, or a list of them; raises InputError for anything else, naming the argument."""
    found = [given_texts] if isinstance(given_texts, str) else given_texts
    found = list(found) if isinstance(found, Iterable) and not isinstance(found, (bytes, Mapping)) else None
    if found is None:
        raise InputError(f"{name} {given(given_texts)}: expected a text or a list of texts")
    if others := [one for one in found if not isinstance(one, str)]:
        raise InputError(f"{name}: expected texts, got {given(others[0])} among them")
    return found


def _continued(prompts: Sequence[str], written: Sequence[str], who: str) -> list[tuple[str, str]]:
    """Prompts with what is written behind them, without those behind which nothing is."""
    found = [(prompt, text) for prompt, text in zip(prompts, written, strict=True) if text.strip()]
    if not found:
        raise DemonstrationError(f"{who} writes nothing behind any of {len(prompts)} prompts")
    if len(found) < len(prompts):
        warnings.warn(
            f"{len(prompts) - len(found)} of {len(prompts)} prompts are left out: {who} writes nothing behind them",
            SeaLensWarning,
            stacklevel=4,
        )
    return found


def _given(prompts: Sequence[str], texts: Sequence[str]) -> list[tuple[str, str]]:
    """Prompts with the continuations that the user gives."""
    if len(texts) != len(prompts):
        raise InputError(f"{len(texts)} continuations of {len(prompts)} prompts: expected one for each")
    return list(zip(prompts, texts, strict=True))


@dataclass(frozen=True)
class _Texts:
    """Continuations as tokens, ready to be scored token by token.

    Attributes:
        pairs: prompts and continuations.
        completions: tokens of both, and where the continuation begins.
        scorer: of them.
    """

    pairs: Sequence[tuple[str, str]]
    completions: Sequence[tuple[list[int], int]]
    scorer: Scorer

    @classmethod
    def of(cls, lens: Lens, pairs: Sequence[tuple[str, str]], *, batch_size: int, prepend_bos: bool) -> "_Texts":
        found = [
            encode_completion(lens, *pair, prepend_bos=prepend_bos, what=f"continuation {place}")
            for place, pair in enumerate(pairs)
        ]
        return cls(pairs, found, Scorer.of(lens, found, range(len(found)), batch_size))

    @property
    def counts(self) -> list[int]:
        """Tokens of each continuation."""
        return [len(tokens) - start for tokens, start in self.completions]

    def log_probs(self) -> Float[Tensor, " tokens"]:
        """Log-probability of every token, one text behind the other, under the model as it is now."""
        found = self._of_tokens(lambda batch: self.scorer.batch_log_probs(batch).double().cpu())
        check_log_probs(found)
        return found

    def change(self, model: Any, edit: Edit, where: Where) -> Float[Tensor, " texts"]:
        """Change of each text's log-probability by an edit, in nats."""
        before = self.log_probs()
        with edit.put(model, where):
            after = self.log_probs()
        return self.table(after - before).sum(1)

    def preferred(self) -> Int[Tensor, " tokens"]:
        """The most probable token at the place of every token, under the model as it is now."""
        lens = self.scorer.lens

        def best(batch: ScoringBatch) -> Float[Tensor, " n"]:
            with telling(lens, batch.prompts.tolist()):
                found = predict(lens, batch.tokens, batch.mask)
            return found.logits(batch.row, batch.position).argmax(-1).double().cpu()

        return self._of_tokens(best).long()

    def _of_tokens(self, measured: Callable[[ScoringBatch], Float[Tensor, " n"]]) -> Float[Tensor, " tokens"]:
        firsts = torch.tensor([0, *self.counts]).cumsum(0)
        starts = torch.tensor([start for _, start in self.completions])
        found = torch.zeros(int(firsts[-1]), dtype=torch.float64)

        def filled() -> list[Tensor]:
            with torch.no_grad():
                for batch in mine(self.scorer.batches):
                    # A prompt's last token predicts the first of its continuation.
                    place = batch.position + 1 - starts[batch.completion]
                    found[firsts[batch.completion] + place] = measured(batch)
            return [found]

        summed(filled)
        return found

    def table(self, values: Float[Tensor, "tokens *rest"]) -> Float[Tensor, "texts places *rest"]:
        """What belongs to each token, by text and place; 0 where a text has no token."""
        of_texts = values.split(self.counts)
        return torch.nn.utils.rnn.pad_sequence(list(of_texts), batch_first=True)

    def told(
        self, before: Float[Tensor, " tokens"], after: Float[Tensor, " tokens"], preferred: Int[Tensor, " tokens"]
    ) -> tuple[TextTokens, ...]:
        """Every text with its tokens."""
        decode = self.scorer.lens.tokenizer.decode
        best_of_texts = [[decode([i]) for i in one.tolist()] for one in preferred.split(self.counts)]
        of_texts = (values.split(self.counts) for values in (before, after))
        rows = zip(self.pairs, self.completions, best_of_texts, *of_texts, strict=True)
        return tuple(
            TextTokens(prompt, text, tuple(decode([i]) for i in tokens[start:]), tuple(best), one, other)
            for (prompt, text), (tokens, start), best, one, other in rows
        )
