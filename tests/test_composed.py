"""Several edits in a stated order as one, and their joint effect split between them."""

import warnings

import pytest
import torch
from tiny import contrasts, demonstrations, fitted, sentence

import sea_lens as sl

pytestmark = pytest.mark.model


@pytest.fixture
def members(model):
    """Two linear edits of the same site, and one that adds a vector behind the prompt."""
    first = fitted(model, rank=(3, 2)).with_defaults(layers=[0, 1], strength=0.7)
    second = fitted(model, rank=(1, 1)).with_defaults(strength={0: 1.0, 1: 0.5, 2: 1.5})
    added = sl.mean_difference(sl.capture(model, demonstrations(), progress=False))
    return first, second, added


def test_the_second_edits_what_the_first_has_made(model, members):
    first, second, _ = members
    both, other_way = sl.composed(first, second), sl.composed(second, first)
    assert isinstance(both, sl.ActivationEdit)
    assert isinstance(other_way, sl.ActivationEdit)
    x = torch.randn(4, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    expected = second(first(x, 0, 0.7), 0, 1.0)
    torch.testing.assert_close(both(x, 0), expected)
    assert not torch.allclose(both(x, 0), other_way(x, 0), atol=1e-4)
    torch.testing.assert_close(both(x, 2), second(x, 2, 1.5))
    # The strength is how far along.
    torch.testing.assert_close(both(x, 0, 0.25), x + 0.25 * (expected - x))
    torch.testing.assert_close(both(x, 0, torch.tensor([0.25] * 4)), x + 0.25 * (expected - x))


@pytest.mark.parametrize("reversed_order", [False, True])
def test_composed_edits_do_what_installing_them_in_turn_does(reversed_order, model, members):
    prompts = [sentence(i, 4) for i in range(3)]
    for some in (members[:2], members[::2], members):
        order = list(some)[::-1] if reversed_order else list(some)
        whole = sl.composed(*order)
        composed = sl.effect(model, whole, contrasts(4))
        with pytest.warns(sl.SeaLensWarning, match="edited already"):
            handles = [edit.install(model) for edit in order]
        try:
            written = sl.generate(model, prompts, max_new_tokens=4)
        finally:
            for handle in handles:
                handle.remove()
        with whole.applied(model):
            assert sl.generate(model, prompts, max_new_tokens=4) == written
        # The effect of the last on a model with the others in it, on top of the others' own.
        rest = sl.effect(model, order[0], contrasts(4)).effect
        for place in range(1, len(order)):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*edited already", category=sl.SeaLensWarning)
                before = [edit.install(model) for edit in order[:place]]
                rest += sl.effect(model, order[place], contrasts(4)).effect
            for handle in before:
                handle.remove()
        assert composed.effect == pytest.approx(rest, abs=1e-4)


def test_the_joint_effect_is_split_between_the_edits(model, members):
    first, second, added = members
    whole = sl.composed(first, second, added)
    found = sl.interactions(model, whole, contrasts(4), of="edits")
    assert found.players == (0, 1, 2)
    assert found.joint == pytest.approx(sl.effect(model, whole, contrasts(4)).effect, abs=1e-6)
    assert found.total == pytest.approx(found.effect, abs=1e-6)
    alone = sl.interactions(model, whole, contrasts(4), of="edits", method="only_one")
    for place, edit in enumerate((first, second, added)):
        assert alone.singles()[place] == pytest.approx(sl.effect(model, edit, contrasts(4)).effect, abs=1e-5)
    pair = sl.effect(model, sl.composed(first, second), contrasts(4)).effect
    expected = pair - alone.singles()[0] - alone.singles()[1]
    assert dict(zip(alone.labels, alone.values.tolist(), strict=True))[0, 1] == pytest.approx(expected, abs=1e-5)


def test_edits_of_one_site_go_through_all_analyses(model, members):
    whole = sl.composed(*members[:2])
    items = contrasts(3)
    layers = sl.layer_contributions(model, whole, items)
    assert layers.closure_error < 0.01 * abs(layers.effect) + 1e-3
    assert sl.head_contributions(model, whole, items, "sufficiency").effect == pytest.approx(layers.effect, abs=1e-6)
    assert sl.mediation(model, whole, items, exact=0).effect == pytest.approx(layers.effect, abs=1e-6)
    # One that does nothing changes nothing, and has no share.
    idle = sl.composed(members[0], members[1].with_defaults(strength=0.0))
    assert sl.effect(model, idle, items).effect == pytest.approx(sl.effect(model, members[0], items).effect, abs=1e-6)
    split = sl.interactions(model, idle, items, of="edits")
    assert split.singles()[1] == pytest.approx(0.0, abs=1e-6)
    assert split.singles()[0] == pytest.approx(split.effect, abs=1e-6)


def test_what_cannot_be_composed_is_refused(model, members):
    with pytest.raises(sl.InputError, match="two edits or more, got 1"):
        sl.composed(members[0])
    with pytest.raises(sl.InputError, match=r"need what sl\.composed makes, got SpectralEdit"):
        sl.interactions(model, members[0], contrasts(2), of="edits")
    mixed = sl.composed(members[0], members[2])
    with pytest.raises(sl.InputError, match="act where each remembers to: expected no positions"):
        sl.effect(model, mixed, contrasts(2), positions="prompt")
    with pytest.raises(sl.InputError, match="needs an edit of activations, got Composed"):
        sl.head_contributions(model, mixed, contrasts(2))


def test_a_composed_edit_tells_what_its_members_have_seen(model, members):
    seen = [sl.Contrast(one.neutral, " w1", " w2") for one in demonstrations()][:2]
    with pytest.warns(sl.SeaLensWarning, match="of 2 contrasts ask questions that the edit was fitted from"):
        sl.effect(model, sl.composed(*members[:2]), seen)


def test_two_names_of_one_set_of_positions_make_one_edit(members):
    first, second, _ = members
    both = sl.composed(first.with_defaults(positions="answer"), second.with_defaults(positions="generated"))
    assert isinstance(both, sl.ActivationEdit)


def test_controls_of_composed_edits_are_composed_of_as_many(model, members):
    first, second, added = members
    whole, items = sl.composed(first, second), contrasts(3)
    for other, got in ((sl.composed(first, first, second), "3 edits"), (first, "SpectralEdit")):
        with pytest.raises(sl.InputError, match=f"composed of as many, got {got}"):
            sl.interactions(model, whole, items, of="edits", control=[other])
        with pytest.raises(sl.InputError, match=f"composed of as many, got {got}"):
            sl.score_contributions(model, whole, ["w1 w2"], lambda p, t: [0.0] * len(t), of="edits", control=[other])
    drawn = sl.composed(sl.randomised(first, seed=0), sl.randomised(second, seed=1))
    assert sl.interactions(model, whole, items, of="edits", control=[drawn]).n_controls == 1
    mixed = sl.composed(first, added)
    assert sl.interactions(model, mixed, items, of="edits", control=[mixed]).n_controls == 1


def test_what_overflows_between_members_stays_finite(members):
    first, second, added = members
    vast = added.with_defaults(strength=3e38, positions="all")
    whole = sl.composed(vast, first, second)
    assert isinstance(whole, sl.ActivationEdit)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(whole(x, 0)).all()
    assert torch.equal(whole(x, 0, 0.0), x)
