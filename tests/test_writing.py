"""What an edit does to the text that the model writes, and to scores of it."""

import warnings

import pytest
from tiny import demonstrations, fitted, sentence

import sea_lens as sl

pytestmark = pytest.mark.model
PROMPTS = [sentence(i, 4) for i in range(8)]


def letters(prompts, texts):
    """A score of one's own: how many words end in an odd digit."""
    assert len(prompts) == len(texts)
    return [sum(word[-1] in "13579" for word in text.split()) for text in texts]


@pytest.fixture
def edit(model):
    return fitted(model, rank=(3, 2)).with_defaults(strength=2.0)


@pytest.fixture
def pairs(model, edit):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* prompts are left out", category=sl.SeaLensWarning)
        return sl.written(model, edit, PROMPTS, max_new_tokens=4)


def test_contrasts_are_what_is_written_with_the_edit_and_without(model, edit, pairs):
    assert 0 < len(pairs) <= len(PROMPTS)
    for one in pairs:
        (after,) = sl.generate(model, [one.prompt], edit, max_new_tokens=4)
        (before,) = sl.generate(model, [one.prompt], max_new_tokens=4)
        assert (one.target, one.foil) == (after, before)
    assert sl.layer_contributions(model, edit, pairs).labels == edit.layers


def test_what_is_written_alike_is_left_out_and_said(model, edit):
    with pytest.raises(sl.DemonstrationError, match="none of 8 prompts is continued otherwise"):
        sl.written(model, edit, PROMPTS, strength=0.0, max_new_tokens=3)


def test_single_tokens_are_likelier_under_whoever_writes_them(model, edit):
    def first(one, **options):
        return sl.generate(model, [one], max_new_tokens=1, **options)

    changed = [first(prompt, edit=edit) != first(prompt) for prompt in PROMPTS]
    assert 0 < sum(changed) < len(PROMPTS)
    with pytest.warns(sl.SeaLensWarning, match=f"{changed.count(False)} of 8 prompts are left out"):
        found = sl.written(model, edit, PROMPTS, max_new_tokens=1)
    assert len(found) == sum(changed)
    for one in found:
        # Each is the most probable of all where it is written.
        measured = sl.effect(model, edit, [one])
        assert measured.before < 0 < measured.after


def test_scores_are_differences_between_what_is_written(model, edit):
    def scored(layers):
        texts = sl.generate(model, PROMPTS, edit, layers, max_new_tokens=4) if layers else None
        texts = sl.generate(model, PROMPTS, max_new_tokens=4) if texts is None else texts
        return sum(letters(PROMPTS, texts)) / len(PROMPTS)

    before, whole = scored(None), scored([0, 1, 2])
    found = sl.score_contributions(model, edit, PROMPTS, letters, max_new_tokens=4)
    assert found.unit == "score"
    assert found.effect == pytest.approx(whole - before)
    assert found.total == pytest.approx(found.effect)
    assert list(found.after) == sl.generate(model, PROMPTS, edit, max_new_tokens=4)
    assert list(found.before) == sl.generate(model, PROMPTS, max_new_tokens=4)
    alone = sl.score_contributions(model, edit, PROMPTS, letters, method="only_one", max_new_tokens=4)
    for layer in (0, 1, 2):
        assert alone.singles()[layer] == pytest.approx(scored([layer]) - before)
    pair = dict(zip(alone.labels, alone.values.tolist(), strict=True))[0, 2]
    assert pair == pytest.approx(scored([0, 2]) - scored([0]) - scored([2]) + before)
    without = sl.score_contributions(
        model, edit, PROMPTS, letters, method="leave_one_out", max_new_tokens=4, control=[edit, edit]
    )
    assert without.singles()[1] == pytest.approx(whole - scored([0, 2]))
    assert without.control_values is not None
    assert without.control_values[0].tolist() == without.values.tolist()


def test_scores_are_split_between_composed_edits(model, edit):
    idle = edit.with_defaults(strength=0.0)
    found = sl.score_contributions(model, sl.composed(idle, edit), PROMPTS, letters, of="edits", max_new_tokens=3)
    assert found.singles()[0] == 0.0
    assert found.singles()[1] == pytest.approx(found.effect)
    with pytest.raises(sl.InputError, match=r"need what sl\.composed makes"):
        sl.score_contributions(model, edit, PROMPTS, letters, of="edits", max_new_tokens=3)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda prompts, texts: [1.0], "expected a finite score for each of 8 continuations"),
        (lambda prompts, texts: [float("nan")] * 8, "expected a finite score for each of 8 continuations"),
        (lambda prompts, texts: None, "expected a finite score for each of 8 continuations"),
        (lambda prompts, texts: list(texts), "expected a finite score for each of 8 continuations"),
    ],
)
def test_scores_that_are_none_are_refused(score, message, model, edit):
    with pytest.raises(sl.InputError, match=message):
        sl.score_contributions(model, edit, PROMPTS, score, max_new_tokens=2)
    with pytest.raises(sl.InputError, match="at least one prompt"):
        sl.score_contributions(model, edit, [], score)


def test_one_text_is_one_prompt_and_one_stop(model, edit):
    found = sl.score_contributions(model, edit, PROMPTS[0], letters, max_new_tokens=3, stop=" w1")
    assert list(found.after) == sl.generate(model, PROMPTS[:1], edit, max_new_tokens=3, stop=" w1")


def test_what_acts_as_a_whole_has_no_layers_to_score(model):
    examples = sl.in_context(model, demonstrations()[:3], shots=2)
    with pytest.raises(sl.InputError, match="examples stand in front of the whole model"):
        sl.score_contributions(model, examples, PROMPTS[:2], letters, max_new_tokens=2)
