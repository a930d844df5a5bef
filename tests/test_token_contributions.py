"""What an edit does to each token of a text, and which layers do it."""

import inspect

import matplotlib.pyplot as plt
import pytest
import torch
from tiny import contrasts, demonstrations, fitted, sentence

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.models.tokens import encode

pytestmark = pytest.mark.model
PROMPTS = [sentence(i, 3 + i % 3) for i in range(5)]
GIVEN = [" " + sentence(i + 20, 2 + i % 2) for i in range(5)]


def by_hand(model, prompt, text, edit=None, layers=None):
    """Log-probability of each token of the text, and the most probable token there."""
    lens = Lens.of(model)
    ids = torch.tensor([list(encode(lens, prompt + text))])
    start = len(encode(lens, prompt))
    with torch.no_grad():
        if edit is None or layers == []:
            logits = model(ids)
        else:
            with edit.applied(model, layers):
                logits = model(ids)
    log_probs = logits.log_softmax(-1)[0]
    places = range(start, ids.shape[1])
    best = [lens.tokenizer.decode([int(log_probs[i - 1].argmax())]) for i in places]
    return torch.tensor([log_probs[i - 1, ids[0, i]].item() for i in places], dtype=torch.float64), best


def test_every_tokens_change_is_the_models_own(model):
    edit = fitted(model)
    found = sl.token_contributions(model, edit, PROMPTS, GIVEN)
    for place, (prompt, text) in enumerate(zip(PROMPTS, GIVEN, strict=True)):
        before, best = by_hand(model, prompt, text)
        after, _ = by_hand(model, prompt, text, edit)
        told = found.texts[place]
        torch.testing.assert_close(told.before, before, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(told.after, after, rtol=1e-4, atol=1e-5)
        assert list(told.preferred) == best
        assert len(told.tokens) == len(text.split())
        assert found.item_effects[place].item() == pytest.approx((after - before).sum().item(), abs=1e-4)
    # What layers add to a token is its change, and what they add to a text is the text's.
    torch.testing.assert_close(found.item_values.sum(1), found.changes(), rtol=1e-6, atol=1e-9)
    assert found.closure_error < 1e-9


@pytest.mark.parametrize("method", ["only_one", "leave_one_out"])
def test_a_layers_part_is_a_difference_of_two_runs(method, model):
    edit = fitted(model)
    found = sl.token_contributions(model, edit, PROMPTS[:2], GIVEN[:2], method)
    for place in range(2):
        for i, layer in enumerate(edit.layers):
            others = [at for at in edit.layers if at != layer]
            with_it, without = ([layer], []) if method == "only_one" else (None, others)
            expected = (
                by_hand(model, PROMPTS[place], GIVEN[place], edit, with_it)[0]
                - by_hand(model, PROMPTS[place], GIVEN[place], edit, without)[0]
            )
            got = found.item_values[place, i, : len(expected)]
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)


def test_what_the_edited_model_writes_is_read(model):
    edit = fitted(model, rank=(3, 2)).with_defaults(strength=2.0)
    found = sl.token_contributions(model, edit, PROMPTS, max_new_tokens=3)
    assert [one.text for one in found.texts] == sl.generate(model, PROMPTS, edit, max_new_tokens=3)
    one = found.texts[0]
    # The edited model finds every token that it has written most probable.
    _, best = by_hand(model, one.prompt, one.text, edit)
    assert list(one.tokens) == best
    assert len(found.tokens_frame()) == sum(len(text.tokens) for text in found.texts)


def test_controls_are_measured_on_the_same_texts(model):
    edit = fitted(model)
    found = sl.token_contributions(model, edit, PROMPTS, GIVEN, control=[edit, sl.randomised(edit, 0)])
    assert found.control_values is not None
    assert found.control_effects is not None
    torch.testing.assert_close(found.control_values[0], found.values)
    assert found.control_effects[0].item() == pytest.approx(found.effect)
    assert not torch.allclose(found.control_values[1], found.values)


def test_no_shuffled_fit_wins_by_having_chosen_the_text(model):
    # Each fit in turn in the place of the edit, beside all others: labels say nothing, and one alone can be outermost.
    edit = fitted(model, rank=(3, 3)).with_defaults(strength=2.0)
    fits = sl.permuted(model, edit, demonstrations(), 6)
    found = [
        sl.token_contributions(
            model, one, PROMPTS, method="only_one", max_new_tokens=2, control=[x for x in fits if x is not one]
        )
        for one in fits
    ]
    assert sum(one.effect_p_value <= 1 / 6 for one in found) <= 1
    # What a control is compared by is what it does to its own text, as it does it in the place of the edit.
    own = [one.effect for one in found]
    for place, one in enumerate(found):
        assert one.control_effects is not None
        assert one.control_effects.tolist() == pytest.approx([x for i, x in enumerate(own) if i != place], abs=1e-5)
        assert one.n_controls == 5
    # On the text of one of them the others do worse, which is why it is no comparison.
    texts = [one.text for one in found[0].texts]
    prompts = [one.prompt for one in found[0].texts]
    on_its_text = sl.token_contributions(model, fits[0], prompts, texts, method="only_one", control=fits[1:])
    assert on_its_text.control_effects is not None
    assert on_its_text.effect > on_its_text.control_effects.max()


def test_tokens_that_an_edit_has_chosen_have_no_p_values(model):
    edit = fitted(model)
    found = sl.token_contributions(model, edit, PROMPTS, max_new_tokens=2, control=[sl.randomised(edit, 0)])
    assert found.own_texts
    assert found.control_values is None
    assert "p" not in found.to_frame()
    with pytest.raises(sl.InputError, match="the edit has chosen these tokens"):
        found.p_values()
    assert "of 1 control)" in str(found)
    found.plot()
    plt.close("all")
    given = sl.token_contributions(model, edit, PROMPTS, GIVEN, control=[sl.randomised(edit, 0)])
    assert not given.own_texts
    assert "p" in given.to_frame()


def test_edits_of_other_methods_have_tokens_too(model):
    edit = sl.mean_difference(sl.capture(model, demonstrations(8)))
    found = sl.token_contributions(model, edit, PROMPTS[0], GIVEN[0])
    assert found.layers == edit.layers
    assert found.closure_error < 1e-9


def test_tokens_are_tables_and_figures(model):
    found = sl.token_contributions(model, fitted(model), PROMPTS, GIVEN)
    assert len(found.to_frame()) == 3 * max(len(one.tokens) for one in found.texts)
    frame = found.tokens_frame()
    assert frame["change"].tolist() == pytest.approx((frame["after"] - frame["before"]).tolist())
    assert frame["change"].tolist() == pytest.approx(frame[["layer_0", "layer_1", "layer_2"]].sum(axis=1).tolist())
    found.plot()
    drawn = found.plot(prompt=1)
    assert [text.get_text() for text in drawn.get_xticklabels()] == [token.strip() for token in found.texts[1].tokens]
    with pytest.raises(sl.InputError, match="no prompt 5: there are 5"):
        found.plot(prompt=5)
    plt.close("all")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([],), {}, sl.DemonstrationError, "at least one prompt"),
        ((PROMPTS, GIVEN[:2]), {}, sl.InputError, "2 continuations of 5 prompts"),
        ((PROMPTS[:1], [""]), {}, sl.DemonstrationError, "continuation 0"),
        ((PROMPTS, GIVEN), {"method": "path"}, sl.InputError, "unknown method 'path'"),
        ((5,), {}, sl.InputError, "prompts 5: expected a text or a list of texts"),
        ((None,), {}, sl.InputError, "prompts None"),
        (([1, 2],), {}, sl.InputError, "prompts: expected texts, got 1 among them"),
        ((["w1", None],), {}, sl.InputError, "got None among them"),
        ((contrasts(2),), {}, sl.InputError, "got Contrast"),
        ((PROMPTS, 5), {}, sl.InputError, "continuations 5: expected a text or a list of texts"),
        ((PROMPTS[:2], ["w1", 3]), {}, sl.InputError, "continuations: expected texts, got 3 among them"),
    ],
)
def test_impossible_texts_are_refused(arguments, options, error, message, model):
    # Without the checks of types that tests add.
    call = inspect.unwrap(sl.token_contributions)
    with pytest.raises(error, match=message):
        call(model, fitted(model), *arguments, **options)
