import pytest
import torch
from tiny import N_CTX, contrasts, fitted, sentence

import sea_lens as sl
from sea_lens.measure.scorer import Scorer, contrast_scorer, text_scorer
from sea_lens.models.lens import Lens
from sea_lens.models.tokens import encode, encode_completion

pytestmark = pytest.mark.model


def one_by_one(model, prompt, completion):
    """log p(completion | prompt) from one forward pass of its own."""
    lens = Lens.of(model)
    ids, start = encode_completion(lens, prompt, completion)
    logits = lens.forward(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64)).detach()[0]
    log_probs = logits.double().log_softmax(-1)
    return sum(log_probs[i - 1, ids[i]].item() for i in range(start, len(ids)))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_log_probabilities_are_those_of_one_forward_each(batch_size, any_model):
    items = contrasts()
    scorer = contrast_scorer(any_model, items, batch_size=batch_size)
    expected = [one_by_one(any_model, item.prompt, text) for item in items for text in (item.target, item.foil)]
    torch.testing.assert_close(scorer.log_probs(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_one_token_answers_to_one_prompt_share_a_row_and_items_never_do(model):
    same = sl.Contrasts([sl.Contrast("w1 w2", " w3", " w4"), sl.Contrast("w1 w2", " w5", " w6")])
    scorer = contrast_scorer(model, same)
    assert sum(len(batch.tokens) for batch in scorer.batches) == 2
    assert scorer.batches[0].items.tolist() == [0, 1]


def test_the_effect_is_the_mean_change_of_the_contrast(model):
    edit, items = fitted(model), contrasts()

    def measured():
        return [one_by_one(model, c.prompt, c.target) - one_by_one(model, c.prompt, c.foil) for c in items]

    before = torch.tensor(measured(), dtype=torch.float64)
    with edit.applied(model, layers="last-2", strength=0.8, combine="average"):
        after = torch.tensor(measured(), dtype=torch.float64)
    result = sl.effect(model, edit, items, layers="last-2", strength=0.8, combine="average")
    torch.testing.assert_close(result.before_items, before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.after_items, after, rtol=1e-4, atol=1e-4)
    assert result.effect == pytest.approx((after - before).mean().item(), abs=1e-4)
    assert result.interval.mean == pytest.approx(result.effect)
    assert result.interval == sl.bootstrap(result.items.numpy(), kind="number")
    frame = result.to_frame()
    assert list(frame.columns) == ["before", "after", "effect", "mass_before", "mass_after"]
    assert frame["effect"].mean() == pytest.approx(result.effect)


def test_masses_are_probabilities_of_the_two_answers(model):
    item = contrasts()[2]
    result = sl.effect(model, fitted(model), sl.Contrasts([item]), strength=0.0)
    expected = sum(torch.tensor(one_by_one(model, item.prompt, text)).exp().item() for text in (item.target, item.foil))
    assert result.before_mass.item() == pytest.approx(expected, rel=1e-4)
    assert result.effect == pytest.approx(0, abs=1e-6)


def test_texts_are_scored_after_their_first_token(model):
    text = "w1 w2 w3 w4"
    scorer = text_scorer(model, [text])
    lens = Lens.of(model)
    ids = encode(lens, text)
    logits = lens.forward(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64)).detach()[0].double()
    expected = logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]].sum()
    torch.testing.assert_close(scorer.log_probs()[0], expected, rtol=1e-5, atol=1e-5)
    assert scorer.token_counts.tolist() == [4]


def test_a_row_shared_by_two_completions_counts_for_both(model):
    lens = Lens.of(model)
    pair = [encode_completion(lens, "w1 w2", text) for text in (" w3 w4", " w3")]
    scorer = Scorer.of(lens, pair, [0, 0], 4)
    expected = [one_by_one(model, "w1 w2", text) for text in (" w3 w4", " w3")]
    torch.testing.assert_close(scorer.log_probs(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_contrasts_that_cannot_be_scored_are_refused_before_any_forward(model, monkeypatch):
    edit = fitted(model)
    monkeypatch.setattr(Lens, "forward", lambda *_: pytest.fail("a forward pass was run"))
    with pytest.raises(sl.DemonstrationError, match=f"contrast 1, foil, has {N_CTX + 3} tokens"):
        sl.effect(
            model, edit, [sl.Contrast("w1", " w2", " w3"), sl.Contrast("w1", " w2", " " + sentence(0, N_CTX + 1))]
        )
    with pytest.raises(sl.InputError, match="unknown combine"):
        sl.effect(model, edit, contrasts(), combine="sum")


def test_generation_under_an_edit_is_greedy_step_by_step(any_model):
    edit, lens = fitted(any_model), Lens.of(any_model)
    prompts = ["w1 w2 w3", "w9", "w4 w5 w6"]
    for chosen in (None, edit):
        found = sl.generate(any_model, prompts, chosen, max_new_tokens=4)
        handle = chosen.install(any_model) if chosen else None
        for prompt, text in zip(prompts, found, strict=True):
            ids = encode(lens, prompt)
            words = []
            for _ in range(4):
                logits = lens.forward(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64))
                ids = [*ids, int(logits[0, -1].argmax())]
                if ids[-1] == lens.tokenizer.eos_token_id:
                    break
                words.append(lens.tokenizer.convert_ids_to_tokens(ids[-1]))
            specials = {"<pad>", "<s>", "</s>", "<unk>"}
            assert text.split() == [word for word in words if word not in specials]
        if handle:
            handle.remove()


def test_prompts_that_do_not_fit_are_refused(model):
    with pytest.raises(sl.DemonstrationError, match="exceeds the model's context of 48"):
        sl.generate(model, "w1 w2", max_new_tokens=46)
    with pytest.raises(sl.InputError, match="max_new_tokens 0"):
        sl.generate(model, "w1 w2", max_new_tokens=0)
