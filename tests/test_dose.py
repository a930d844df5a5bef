"""The effect of an edit, and its cost, by strength."""

import matplotlib.pyplot as plt
import pytest
import torch
from tiny import contrasts, demonstrations, fitted, sentence

import sea_lens as sl

pytestmark = pytest.mark.model
TEXTS = [sentence(900 + i, 12) for i in range(4)]


@pytest.fixture(scope="module")
def found(load_tiny):
    model = load_tiny("llama", "bridge")
    edit = fitted(model)
    given = (model, edit, contrasts(5), [0.5, 1.0, 2.0], TEXTS, "layers")
    return given, sl.dose(*given, control=[sl.randomised(edit, 0), edit], method="only_one")


def test_every_strength_has_the_effect_and_the_side_effects_that_it_has_by_itself(found):
    (model, edit, items, strengths, *_), dose = found
    frame = dose.to_frame()
    for i, strength in enumerate(strengths):
        effect = sl.effect(model, edit, items, strength=strength)
        assert frame["effect"][i] == pytest.approx(effect.effect, abs=1e-6)
        assert frame["worse"][i] == (effect.items < 0).double().mean().item()
        layers = sl.layer_contributions(model, edit, items, "only_one", strength=strength)
        torch.testing.assert_close(dose.contributions[i].values, layers.values)
    assert len(dose.contributions_frame()) == 9
    assert dose.contributions_frame()["strength"].unique().tolist() == strengths


def test_divergence_is_that_of_the_predictions(found):
    (model, edit, _, strengths, texts, _), dose = found
    for strength, side in zip(strengths, dose.sides, strict=True):
        total, tokens, losses = 0.0, 0, 0.0
        for text in texts:
            ids = model.to_tokens(text, prepend_bos=True)
            with torch.no_grad():
                before = model(ids).log_softmax(-1)[0, :-1]
                with edit.applied(model, strength=strength):
                    after = model(ids).log_softmax(-1)[0, :-1]
            total += (before.exp() * (before - after)).sum().item()
            losses += (before - after).gather(1, ids[0, 1:, None]).sum().item()
            tokens += len(before)
        assert side.kl == pytest.approx(total / tokens, rel=1e-3)
        assert side.loss_change == pytest.approx(losses / tokens, rel=1e-3, abs=1e-5)


def test_controls_stand_at_the_same_strengths(found):
    _, dose = found
    own = torch.tensor([one.effect for one in dose.effects], dtype=torch.float64)
    torch.testing.assert_close(dose.control_effects[1], own)
    torch.testing.assert_close(dose.control_kl[1], torch.tensor([s.kl for s in dose.sides], dtype=torch.float64))
    assert not torch.allclose(dose.control_effects[0], own)
    frame = dose.to_frame()
    assert (frame["control_low"] <= frame["effect"] + 1e-9).all()
    dose.plot()
    plt.close("all")


def test_the_best_strength_is_the_best_within_the_budget(found):
    _, dose = found
    costs, effects = [s.kl for s in dose.sides], [e.effect for e in dose.effects]
    assert dose.best(max(costs)) == dose.strengths[effects.index(max(effects))]
    assert dose.best(costs[0]) == 0.5
    with pytest.raises(sl.InputError, match="the least of these strengths diverges by"):
        dose.best(costs[0] / 2)


def test_without_texts_there_is_no_cost(model):
    dose = sl.dose(model, fitted(model), contrasts(2), [1.0])
    assert "kl" not in dose.to_frame()
    with pytest.raises(sl.InputError, match="expected texts"):
        dose.best(1.0)
    with pytest.raises(sl.InputError, match="expected contributions="):
        dose.contributions_frame()
    dose.plot()
    plt.close("all")


@pytest.mark.parametrize("method", ["spectral", "mean_difference", "iti", "leace", "lora"])
def test_every_method_can_be_brought_to_one_divergence(method, model):
    demos = demonstrations()
    edit = {
        "spectral": lambda: fitted(model),
        "mean_difference": lambda: sl.mean_difference(sl.capture(model, demos, progress=False)),
        "iti": lambda: sl.iti(model, demos, heads=3, progress=False),
        "leace": lambda: sl.leace(model, demos, progress=False),
        "lora": lambda: sl.lora(model, demos, epochs=2, learning_rate=1e-2, progress=False),
    }[method]()
    target = 0.5 * sl.dose(model, edit, contrasts(2), [1.0], TEXTS).sides[0].kl
    strength = sl.strength_at_kl(model, edit, TEXTS, target, tolerance=1e-4)
    assert 0 < strength < 1
    assert sl.dose(model, edit, contrasts(2), [strength], TEXTS).sides[0].kl == pytest.approx(target, rel=1e-2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, e: sl.dose(m, e, contrasts(2), []), "strengths"),
        (lambda m, e: sl.dose(m, e, contrasts(2), [float("nan")]), "strengths"),
        (lambda m, e: sl.dose(m, e, contrasts(2), [1.0], None, "nothing"), "unknown contributions 'nothing'"),
        (lambda m, e: sl.dose(m, e, contrasts(2), [1.0], None, "layers", nosuch=1), "has no option nosuch"),
        (lambda m, e: sl.strength_at_kl(m, e, TEXTS, 0), "expected numbers above 0"),
        (lambda m, e: sl.strength_at_kl(m, e, TEXTS, 50.0, most=2.0), "strength 2 diverges by"),
    ],
)
def test_what_cannot_be_dosed_is_refused(call, message, model):
    with pytest.raises(sl.InputError, match=message):
        call(model, fitted(model))


def test_texts_may_be_a_file(model, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text(TEXTS[0], encoding="utf-8")
    one, other = (sl.dose(model, fitted(model), contrasts(2), [1.0], texts) for texts in (path, TEXTS[:1]))
    assert one.sides == other.sides
    with pytest.raises(sl.FileError, match="every text is empty"):
        sl.dose(model, fitted(model), contrasts(2), [1.0], [" "])
