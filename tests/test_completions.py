import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import N_CTX, VOCABULARY, fitted, sentence

import sea_lens as sl
from sea_lens.measure.shared_prompts import log_probs
from sea_lens.measure.spans import Fitted, Span, completion_spans, fit_context, text_spans
from sea_lens.models.cache import Past
from sea_lens.models.decoding import continue_prompts
from sea_lens.models.lens import Lens
from sea_lens.models.tokens import pad

pytestmark = pytest.mark.model


def alone(lens, span):
    """The log-probability of a span from a forward pass of its own, without cache, batch or padding."""
    tokens = torch.tensor([span.tokens])
    scores = lens.forward(tokens, torch.ones_like(tokens)).detach()[0].double().log_softmax(-1)
    return sum(scores[i - 1, span.tokens[i]].item() for i in range(span.start, len(span.tokens)))


def questions(lens, *, preamble="", n=7):
    """Spans of several answers to each of some prompts, and which prompt each belongs to."""
    spans, items = [], []
    for i in range(n):
        answers = [f" {sentence(100 * i + j, 1 + (i + j) % 4)}" for j in range(1 + i % 4)]
        for fitted_one in completion_spans(lens, preamble + sentence(i, 2 + i % 3), answers):
            spans += fitted_one.spans
            items += [i] * len(fitted_one.spans)
    return spans, items


@pytest.mark.parametrize("preamble", ["", sentence(9, 10) + " "], ids=["no examples", "examples in front"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_shared_prompts_give_the_log_probabilities_of_one_forward_each(any_model, batch_size, preamble):
    lens = Lens.of(any_model)
    spans, items = questions(lens, preamble=preamble)
    expected = torch.tensor([alone(lens, span) for span in spans], dtype=torch.float64)
    found = log_probs(lens, spans, items, batch_size=batch_size)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_they_do_under_an_edit_too(model):
    lens, edit = Lens.of(model), fitted(model)
    spans, items = questions(lens, preamble=sentence(9, 10) + " ")
    before = log_probs(lens, spans, items)
    with edit.applied(model):
        expected = torch.tensor([alone(lens, span) for span in spans], dtype=torch.float64)
        found = log_probs(lens, spans, items)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (found - before).abs().max() > 0.01
    assert torch.equal(log_probs(lens, spans, items), before)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), batch_size=st.integers(1, 9))
def test_any_mixture_of_prompts_is_scored_exactly(load_tiny, seed, batch_size):
    lens, rng = Lens.of(load_tiny("gemma2")), random.Random(seed)
    spans, items = [], []
    for item in range(rng.randint(1, 5)):
        prompt = [1, *(rng.randint(4, 9) for _ in range(rng.randint(0, 12)))]
        for _ in range(rng.randint(1, 4)):
            answer = [rng.randint(4, VOCABULARY - 1) for _ in range(rng.randint(1, 6))]
            spans.append(Span((*prompt, *answer), len(prompt)))
            items.append(item)
    expected = torch.tensor([alone(lens, span) for span in spans], dtype=torch.float64)
    torch.testing.assert_close(log_probs(lens, spans, items, batch_size=batch_size), expected, rtol=0, atol=1e-4)


def test_what_is_shared_is_read_once(model):
    lens = Lens.of(model)
    read = []
    spans, items = questions(lens, preamble=sentence(9, 10) + " ", n=6)
    with lens.hooks([("blocks.0.hook_mlp_out", lambda x: read.append(x.shape[0] * x.shape[1]))]):
        log_probs(lens, spans, items)
    assert sum(read) < 0.5 * sum(len(span.tokens) for span in spans)


def test_hooks_of_the_users_own_see_whole_rows(model):
    lens = Lens.of(model)
    spans, items = questions(lens, preamble=sentence(9, 10) + " ", n=3)
    first, marked = [], Span((1, 5, 6, 7), 2)
    with model.hooks([("blocks.0.hook_mlp_out", lambda x, hook: first.append(x.shape[1]))]):
        assert lens.has_foreign_hooks()
        log_probs(lens, [*spans, marked], [*items, 99])
    assert max(first) == max(len(span.tokens) for span in spans) - 1
    assert not lens.has_foreign_hooks()


def test_a_past_depends_on_every_token_of_it(any_model):
    lens = Lens.of(any_model)
    prefixes = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 6, 7, 8]])
    following = torch.tensor([[10, 11], [10, 11]])
    _, past = Past(lens, 2).read(prefixes)
    logits, _ = past.read(following)
    whole = torch.cat([prefixes, following], 1)
    torch.testing.assert_close(logits, lens.forward(whole, torch.ones_like(whole))[:, 5:], rtol=0, atol=1e-5)
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    again, _ = past.read(following)
    assert torch.equal(again, logits)


def test_rows_padded_on_the_left_go_on_as_they_would_alone(any_model):
    lens = Lens.of(any_model)
    prompts = [[1, *range(4, 4 + length)] for length in (3, 11, 1, 7)]
    tokens, mask = pad(prompts, left=True)
    _, past = Past(lens, 4).read(tokens, mask)
    following = torch.arange(20, 28).reshape(4, 2)
    logits, _ = past.select([2, 0, 3]).read(following[[2, 0, 3]])
    for row, place in enumerate([2, 0, 3]):
        whole = torch.tensor([prompts[place] + following[place].tolist()])
        expected = lens.forward(whole, torch.ones_like(whole))[0, -2:]
        torch.testing.assert_close(logits[row], expected, rtol=0, atol=1e-5)


def test_greedy_continuations_do_not_depend_on_the_batch(any_model):
    lens = Lens.of(any_model)
    prompts = [[1, *range(4, 4 + length)] for length in (3, 9, 1, 9)]
    together = continue_prompts(lens, prompts, 6, batch_size=4)
    assert together == [continue_prompts(lens, [prompt], 6)[0] for prompt in prompts]
    for prompt, continuation in zip(prompts, together, strict=True):
        tokens = torch.tensor([prompt + continuation])
        chosen = lens.forward(tokens, torch.ones_like(tokens))[0].argmax(-1)
        assert chosen[len(prompt) - 1 : -1].tolist() == continuation


def test_a_continuation_ends_with_a_stop_text_or_an_end_token(model, monkeypatch):
    lens = Lens.of(model)
    free = continue_prompts(lens, [[1, 5, 6]], 8)[0]
    word = lens.tokenizer.decode([free[2]])
    stopped = continue_prompts(lens, [[1, 5, 6]], 8, stop=[word])[0]
    assert stopped == free[: free.index(free[2]) + 1]
    # An instruction model's turn may end at another token than EOS; its generation configuration says which.
    monkeypatch.setattr(lens, "more_ends", frozenset([free[2]]))
    assert continue_prompts(lens, [[1, 5, 6]], 8)[0] == free[: free.index(free[2])]


def test_a_prompt_too_long_loses_its_left_end_and_keeps_bos(model):
    lens = Lens.of(model)
    assert lens.n_ctx == N_CTX
    # The last token is only predicted, so that one more fits.
    whole = [1, *(4 + i % 40 for i in range(N_CTX))]
    assert fit_context(lens, whole, N_CTX) == Fitted((Span(tuple(whole), N_CTX),), 0)
    tokens = [1, *(4 + i % 40 for i in range(N_CTX + 5))]
    found = fit_context(lens, tokens, len(tokens) - 3)
    (span,) = found.spans
    assert len(span.tokens) == N_CTX + 1
    assert span.tokens[0] == 1
    assert span.tokens[1:] == tuple(tokens[-N_CTX:])
    assert span.tokens[span.start :] == tuple(tokens[-3:])
    assert found.cut == 5


@settings(max_examples=60)
@given(length=st.integers(2, 4 * N_CTX), start=st.integers(1, 4 * N_CTX))
def test_every_token_of_a_long_text_is_scored_once_with_half_a_context_before_it(load_tiny, length, start):
    lens = Lens.of(load_tiny())
    start = min(start, length - 1)
    tokens = [1, *range(100, 99 + length)]
    spans = fit_context(lens, tokens, start).spans
    scored = [token for span in spans for token in span.tokens[span.start :]]
    assert scored == tokens[start:]
    for span in spans:
        assert len(span.tokens) <= N_CTX + 1
        assert span.start >= min(N_CTX // 2 - 1, tokens.index(span.tokens[span.start]))


def test_a_whole_text_is_scored_given_bos_and_given_eos_without_one(model, tmp_path):
    from tiny import save_tiny_model

    (span,) = text_spans(Lens.of(model), "w1 w2 w3").spans
    assert span.tokens[0] == 1
    assert span.start == 1
    without = Lens.of(sl.load_model(save_tiny_model("llama", tmp_path / "m", bos=False), "bridge", device="cpu"))
    (span,) = text_spans(without, "w1 w2 w3").spans
    assert span.tokens[0] == without.tokenizer.eos_token_id
    assert len(span.tokens) == 4


def test_answers_that_cannot_be_scored_are_refused(model):
    lens = Lens.of(model)
    with pytest.raises(sl.DemonstrationError, match="row 7, answer 1, adds no token"):
        completion_spans(lens, "w1", [" w2", " "], what="row 7")
    with pytest.raises(sl.InputError, match="batch_size 0"):
        log_probs(lens, [Span((1, 5), 1)], [0], batch_size=0)
