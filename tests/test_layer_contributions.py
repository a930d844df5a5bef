import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import N_LAYERS, contrasts, demonstrations, fitted

import sea_lens as sl
from sea_lens.contributions import games
from sea_lens.contributions import integral as path
from sea_lens.contributions.layers import by_layer
from sea_lens.contributions.study import Study
from sea_lens.models.lens import Lens
from sea_lens.models.tokens import encode

pytestmark = pytest.mark.model
STRENGTH = 0.9


def effects_of_coalitions(model, edit, items):
    """Effect of every set of edited layers, each measured by itself."""
    found: dict[tuple[int, ...], float] = {(): 0.0}
    for size in range(1, N_LAYERS + 1):
        for chosen in itertools.combinations(range(N_LAYERS), size):
            found[chosen] = sl.effect(model, edit, items, layers=list(chosen), strength=STRENGTH).effect
    return found


def test_each_method_is_its_definition(any_model):
    edit, items = fitted(any_model), contrasts()
    effects = effects_of_coalitions(any_model, edit, items)
    every = tuple(range(N_LAYERS))

    def without(layer):
        return tuple(other for other in every if other != layer)

    def shapley(layer):
        orders = list(itertools.permutations(every))
        gains = []
        for order in orders:
            before = order[: order.index(layer)]
            gains.append(effects[tuple(sorted((*before, layer)))] - effects[tuple(sorted(before))])
        return sum(gains) / len(orders)

    expected = {
        "only_one": [effects[(layer,)] for layer in every],
        "leave_one_out": [effects[every] - effects[without(layer)] for layer in every],
        "shapley": [shapley(layer) for layer in every],
    }
    for method, values in expected.items():
        found = sl.layer_contributions(any_model, edit, items, method, strength=STRENGTH)
        torch.testing.assert_close(found.values, torch.tensor(values, dtype=torch.float64), rtol=1e-3, atol=1e-4)
        assert found.effect == pytest.approx(effects[every], abs=1e-4)
        assert found.total == pytest.approx(sum(values), abs=1e-4)
        assert method != "shapley" or found.closure_error < 1e-6


def test_path_contributions_sum_to_the_effect(any_model):
    found = sl.layer_contributions(any_model, fitted(any_model), contrasts(), "path", strength=STRENGTH)
    assert found.closure_error <= 1e-3 * abs(found.effect) + 1e-6
    assert found.item_values.shape == (6, N_LAYERS)


def test_the_slope_of_the_path_is_that_of_finite_differences(any_model):
    edit, items, step = fitted(any_model), contrasts(), 1e-2
    strength = {0: 1.0, 1: 0.5, 2: 2.0}
    study = Study.of(any_model, edit, items, strength=strength)
    (slopes,) = path.node(study, 0.6, [by_layer(study).shares])
    for layer, slope in enumerate(slopes):

        def value(t, layer=layer):
            moved = {at: 0.6 * alpha for at, alpha in strength.items()} | {layer: t * strength[layer]}
            return sl.effect(any_model, edit, items, strength=moved).after_items

        difference = (value(0.6 + step) - value(0.6 - step)) / (2 * step)
        torch.testing.assert_close(slope, difference, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("site", ["attn_out", "resid_post", "z"])
def test_the_path_closes_at_every_site(site, model):
    edit, items = fitted(model, site=site, centre=True), contrasts()
    found = sl.layer_contributions(model, edit, items, strength=0.5)
    assert found.closure_error <= 1e-3 * abs(found.effect) + 1e-6


def test_the_path_of_steering_closes_too(model):
    covariance = sl.capture(model, demonstrations(), progress=False)
    found = sl.layer_contributions(model, sl.mean_difference(covariance), contrasts(), layers="last-2", strength=2.0)
    assert found.layers == (1, 2)
    assert found.closure_error <= 1e-3 * abs(found.effect) + 1e-6


def test_positions_add_up_to_their_layers(any_model):
    edit, items = fitted(any_model), contrasts()
    by_position = sl.position_contributions(any_model, edit, items)
    by_layer = sl.layer_contributions(any_model, edit, items)
    torch.testing.assert_close(by_position.item_values.sum(2), by_layer.item_values, rtol=1e-4, atol=1e-5)
    lengths = [len(encode(Lens.of(any_model), item.prompt)) for item in items]
    assert by_position.positions[0] == 1 - max(lengths)
    origin = by_position.positions.index(0)
    for values, length in zip(by_position.item_values, lengths, strict=True):
        assert (values[:, : origin + 1 - length] == 0).all()
        assert (values[:, origin] != 0).any()
    # The last layer acts on the answer only from where the answer is predicted.
    assert by_position.item_values[:, -1, :origin].abs().max() == 0


def test_a_positions_contribution_is_what_the_edit_does_there_alone(model):
    # At small strength positions do not interact, so that each one's share is the effect of editing it alone.
    edit, items, small = fitted(model), contrasts(1), 1e-2
    # The effect is so small that float32 rounding is a thousandth of it.
    found = sl.position_contributions(model, edit, items, layers=[0], strength=small, tolerance=0.01)
    unedited = sl.effect(model, edit, items, layers=[0], strength=small).before
    expected = []
    for place in range(len(found.positions)):

        def only_there(x, place=place):
            moved = x.clone()
            moved[:, place] = edit(x, 0, small)[:, place]
            return moved

        with Lens.of(model).hooks([("blocks.0.hook_mlp_out", only_there)]):
            expected.append(sl.effect(model, edit, items, layers=[0], strength=0.0).before - unedited)
    size = max(map(abs, expected))
    assert sum(abs(value) > 0.05 * size for value in expected) > 1
    assert found.values[0].tolist() == pytest.approx(expected, abs=0.02 * size)


def test_sampled_shapley_values_agree_with_exact_ones_and_sum_to_the_effect(model, monkeypatch):
    edit, items = fitted(model), contrasts()
    exact = sl.layer_contributions(model, edit, items, "shapley")
    monkeypatch.setattr(games, "MAX_EXACT_PLAYERS", 2)
    sampled = sl.layer_contributions(model, edit, items, "shapley", permutations=40)
    assert sampled.details["exact"] is False
    assert sampled.closure_error < 1e-6
    for i, error in enumerate(sampled.details["sampling_errors"]):
        assert abs(sampled.values[i] - exact.values[i]) <= 4 * error + 1e-6


def test_a_path_that_does_not_close_says_so(model, monkeypatch):
    monkeypatch.setattr(path, "MAX_NODES", 4)
    with pytest.warns(UserWarning, match=r"close to .* nats with 4 nodes"):
        sl.layer_contributions(model, fitted(model), contrasts(), "path", tolerance=1e-12)


SCRIPT = """
import sys
import warnings
import sea_lens as sl
from sea_lens.contributions import integral
from sea_lens.testbed.planted import planted

integral.MAX_NODES = 4
one, heads = planted("head"), planted("edited_head")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for analyse in (sl.layer_contributions, sl.position_contributions, sl.direction_contributions):
        analyse(one.model, one.edit, one.contrasts, strength=1.3, tolerance=0.0)
    sl.head_contributions(heads.model, heads.edit, heads.contrasts, "path", strength=1.3, tolerance=0.0)
print([warning.filename == __file__ for warning in caught if "close to" in str(warning.message)])
"""


def test_the_warning_of_a_path_that_does_not_close_names_the_line_that_asked(tmp_path):
    # In a process of its own, since the tests' checks of types are frames too.
    (tmp_path / "script.py").write_text(SCRIPT)
    root = str(Path(sl.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.stdout.splitlines()[-1:] == ["[True, True, True, True]"], done.stderr


def test_a_control_combines_as_the_user_asked_or_refuses(model):
    edit, items = fitted(model), contrasts()
    steering = sl.mean_difference(sl.capture(model, demonstrations(), progress=False))
    found = sl.layer_contributions(model, edit, items, "only_one", control=[steering])
    assert found.control_values is not None
    alone = sl.layer_contributions(model, steering, items, "only_one", positions="all")
    torch.testing.assert_close(found.control_values[0], alone.values)
    with pytest.raises(sl.InputError, match="unknown combine 'norm': expected one of add"):
        sl.layer_contributions(model, edit, items, "only_one", combine="norm", control=[steering])


def test_nodes_double_until_the_path_closes(model):
    edit, items = fitted(model), contrasts()
    coarse = sl.layer_contributions(model, edit, items, strength=3.0, tolerance=1.0)
    fine = sl.layer_contributions(model, edit, items, strength=3.0, tolerance=1e-4)
    assert coarse.details["nodes"] == 4
    assert fine.details["nodes"] >= 4
    assert fine.closure_error <= 1e-4 * abs(fine.effect) + 1e-6


def test_the_path_leaves_no_trace(model):
    edit, items = fitted(model), contrasts()
    before = sl.effect(model, edit, items)
    sl.layer_contributions(model, edit, items)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(sl.effect(model, edit, items).after_items, before.after_items)


def test_a_control_is_the_same_analysis_of_other_edits(model):
    edit, items = fitted(model), contrasts()
    others = [sl.randomised(edit, seed) for seed in range(2)]
    found = sl.layer_contributions(model, edit, items, "only_one", layers="last-2", strength=0.7, control=others)
    assert found.control_values is not None
    for values, other in zip(found.control_values, others, strict=True):
        alone = sl.layer_contributions(model, other, items, "only_one", layers="last-2", strength=0.7)
        torch.testing.assert_close(values, alone.values)
    frame = found.to_frame()
    assert (frame["control_low"].to_numpy() == found.control_values.amin(0).numpy()).all()


def test_unknown_methods_are_refused(model):
    with pytest.raises(sl.InputError, match="unknown method 'banzhaf': expected one of path, shapley"):
        sl.layer_contributions(model, fitted(model), contrasts(), "banzhaf")


def test_arguments_that_cannot_be_are_refused(model):
    edit, items = fitted(model), contrasts(2)
    wrong: list[dict[str, Any]] = [{"permutations": 0}, {"tolerance": float("nan")}]
    for options in wrong:
        with pytest.raises(sl.InputError, match=next(iter(options))):
            sl.layer_contributions(model, edit, items, **options)
    with pytest.raises(sl.InputError, match="describe"):
        sl.direction_contributions(model, edit, items, describe=-1)
    with pytest.raises(sl.InputError, match="k -1"):
        sl.layer_contributions(model, edit, items, "only_one").top(-1)


def test_contrasts_may_come_one_by_one(model):
    edit, items = fitted(model), contrasts(2)
    control = [sl.randomised(edit, 0)]
    found = sl.layer_contributions(model, edit, (item for item in items), "only_one", control=control)
    torch.testing.assert_close(found.values, sl.layer_contributions(model, edit, items, "only_one").values)


@pytest.mark.parametrize(
    "strength", [torch.tensor([0.7]), torch.tensor([[0.7]]), torch.tensor(0.7, requires_grad=True)]
)
def test_strengths_of_every_kind_give_the_same_contributions(strength, model):
    edit, items = fitted(model), contrasts(2)
    expected = sl.direction_contributions(model, edit, items, strength=0.7, describe=1)
    found = sl.direction_contributions(model, edit, items, strength=strength, describe=1)
    torch.testing.assert_close(found.values, expected.values)
    assert found.to_frame()["raises"].tolist() == expected.to_frame()["raises"].tolist()


def test_a_users_ablation_behind_the_edit_leaves_nothing_to_contribute(model):
    edit, items = fitted(model), contrasts(2)
    point = model.hook_dict["blocks.2.hook_resid_post"]
    point.add_hook(lambda x, hook: torch.zeros_like(x))
    try:
        assert sl.layer_contributions(model, edit, items).values.abs().max() == 0
        assert sl.head_contributions(model, edit, items, "gradient", sample=0).values.abs().max() == 0
    finally:
        point.remove_hooks(including_permanent=True)


def test_controls_stand_in_the_order_in_which_they_were_given(model):
    edit, items = fitted(model), contrasts()
    first, second = sl.randomised(edit, 1), sl.randomised(edit, 2)
    for method in ("path", "only_one"):
        found = sl.layer_contributions(model, edit, items, method, control=[second, first, second, edit])
        alone = {id(one): sl.layer_contributions(model, one, items, method).values for one in (first, second, edit)}
        assert found.control_values is not None
        wanted = torch.stack([alone[id(one)] for one in (second, first, second, edit)])
        torch.testing.assert_close(found.control_values, wanted, rtol=0, atol=0)
