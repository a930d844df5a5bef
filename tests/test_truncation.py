"""Edits of the first net planes: their effects, and how much of the displacement they make."""

import matplotlib.pyplot as plt
import pytest
import torch
from tiny import contrasts, demonstrations, fitted

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.models.tokens import encode

pytestmark = pytest.mark.model


def test_effects_are_those_of_shorter_edits(model):
    edit, items = fitted(model, rank=(4, 4)), contrasts(4)
    found = sl.truncation(model, edit, items)
    assert found.sizes == (1, 2, 3, 4)
    for k, values in zip(found.sizes, found.item_values.T, strict=True):
        torch.testing.assert_close(values, sl.effect(model, edit.truncated(k), items).items, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.item_values[:, -1], found.item_effects, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("site", ["mlp_out", "resid_post", "z"])
@pytest.mark.parametrize("positions", ["all", "from_last_prompt"])
def test_displacements_are_those_of_the_edited_run(site, positions, model):
    edit, (one,) = fitted(model, site=site, rank=(3, 3)), contrasts(1)
    found = sl.truncation(model, edit, [one], sizes=[1, 2], positions=positions)
    lens = Lens.of(model)
    whole, missed = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    short = [edit.truncated(k) for k in (1, 2)]
    prompt = len(encode(lens, one.prompt))
    rows = {tuple(encode(lens, one.prompt + text))[:-1] for text in (one.target, one.foil)}
    for row in rows:
        for layer in edit.layers:
            # What stands there in the run that the layers in front have edited.
            before = [at for at in edit.layers if at < layer]
            seen = []
            with torch.no_grad(), edit.applied(model, before, positions=positions) if before else torch.no_grad():
                point = edit.at.point(lens, layer)
                with (
                    sl.prompt_lengths(model, [prompt]),
                    lens.hooks([(point, lambda x, seen=seen: seen.append(x.clone()))]),
                ):
                    model(torch.tensor([list(row)]))
            x = seen[0][0]
            kept = slice(1, None) if positions == "all" else slice(prompt - 1, None)
            moved = (edit(x, layer) - x)[kept].double()
            whole[layer] += moved.square().sum()
            for i, cut in enumerate(short):
                missed[layer, i] += (moved - (cut(x, layer) - x)[kept].double()).square().sum()
    torch.testing.assert_close(found.displacements, 1 - missed / whole[:, None], rtol=1e-3, atol=1e-4)


def test_the_whole_edit_makes_all_of_the_displacement_and_shares_rise(model):
    edit = fitted(model, rank=(5, 5))
    found = sl.truncation(model, edit, contrasts(3), combine="average")
    torch.testing.assert_close(found.displacements[:, -1], torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-5)
    # Without a common norm planes are orthogonal, so that each adds to what is explained.
    assert (found.displacements.diff(dim=1) >= -1e-6).all()


def test_controls_are_cut_as_well(model):
    edit = fitted(model, rank=(3, 3))
    control = [edit, sl.randomised(edit, 0)]
    found = sl.truncation(model, edit, contrasts(4), control=control)
    torch.testing.assert_close(found.control_values[0], found.values, rtol=1e-5, atol=1e-7)
    cut = sl.effect(model, control[1].truncated(2), contrasts(4)).effect
    assert found.control_values[1, 1].item() == pytest.approx(cut, abs=1e-6)
    frame = found.to_frame()
    assert (frame["control_low"] <= frame["control_high"]).all()
    assert "of the displacement" in str(found)
    found.plot()
    plt.close("all")


def test_a_layer_that_is_not_moved_has_no_share_of_the_displacement(model):
    edit = fitted(model, rank=(3, 3))
    found = sl.truncation(model, edit, contrasts(3), strength={0: 1.0, 1: 0.0, 2: 1.0}, sizes=[1])
    assert found.displacements[1].isnan().all()
    assert found.displacement.item() == pytest.approx(found.displacements[[0, 2]].mean().item())
    still = sl.truncation(model, edit, contrasts(3), strength=0)
    assert still.displacements.isnan().all()
    assert still.fewest() is None
    assert "there is no effect but rounding" in str(still)
    assert "nothing is moved" in str(still)
    still.plot()
    plt.close("all")


def test_no_share_is_told_of_an_effect_that_may_be_nothing():
    def cut(effects):
        effects = torch.tensor(effects, dtype=torch.float64)
        none = torch.zeros(0, 1, dtype=torch.float64)
        return sl.Truncation((1,), (0,), effects, effects[:, None], torch.ones(1, 1, dtype=torch.float64), none)

    assert "no share of it is told, since its interval contains 0" in str(cut([1.0, -1.0, 2.0, -1.5, 0.5]))
    assert "nats, 1 plane has 0.8 of it; 1: +1.050 (100% of the displacement)" in str(cut([1.0, 1.1, 0.9, 1.2, 1.05]))


def test_what_cannot_be_cut_is_refused(model):
    for combine in ("positive_only", "negative_only"):
        with pytest.raises(sl.InputError, match=f"combine '{combine}': planes are ordered by"):
            sl.truncation(model, fitted(model), contrasts(2), combine=combine)
    with pytest.raises(sl.InputError, match="only a linear edit can be truncated"):
        sl.truncation(model, fitted(model, feature="elu"), contrasts(2))
    with pytest.raises(sl.InputError, match="only a spectral edit"):
        sl.truncation(model, sl.mean_difference(sl.capture(model, demonstrations(6))), contrasts(2))
    with pytest.raises(sl.InputError, match="sizes"):
        sl.truncation(model, fitted(model), contrasts(2), sizes=[0])
