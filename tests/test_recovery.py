"""How few heads and MLPs carry an edit's effect together."""

import inspect

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from tiny import contrasts, fitted

import sea_lens as sl
from sea_lens.contributions.nodes import MLP, Nodes
from sea_lens.contributions.recovering import measured_nodes
from sea_lens.contributions.study import Study
from sea_lens.measure.scorer import contrast_scorer, contrast_values
from sea_lens.models.lens import Lens
from sea_lens.testbed.planted import planted

pytestmark = pytest.mark.model


def exchanged_by_hand(model, items, edit, source, nodes, *, edited):
    """The contrast of each item with nodes' values from the run `source`, one item and one answer at a time."""
    lens = Lens.of(model)
    values = []
    for item in items:
        scorer = contrast_scorer(model, [item])
        taken = {}

        def saving(name, taken=taken):
            def hook(x):
                taken[name] = x.clone()

            return hook

        points = {node: lens.point("mlp_out" if node[1] == MLP else "z", node[0]) for node in nodes}
        hooks = [(name, saving(name)) for name in dict.fromkeys(points.values())]
        mlps = [(name, function) for name, function in hooks if "mlp" in name]
        heads = [(name, function) for name, function in hooks if "mlp" not in name]
        changes = edit.functions(model, edit.check(model, None, None, None, None, scoring=True))
        with torch.no_grad(), lens.hooks([*mlps, *(changes if source == "edited" else []), *heads]):
            scorer.log_probs()

        def putting(node, taken=taken, points=points):
            def hook(x):
                x = x.clone()
                if node[1] == MLP:
                    return taken[points[node]]
                x[:, :, node[1]] = taken[points[node]][:, :, node[1]]
                return x

            return hook

        before = [(points[node], putting(node)) for node in nodes if node[1] == MLP]
        behind = [(points[node], putting(node)) for node in nodes if node[1] != MLP]
        with torch.no_grad(), lens.hooks([*before, *(changes if edited else []), *behind]):
            values.append(contrast_values(scorer.log_probs())[0])
    return torch.stack(values)


def test_joint_exchanges_are_those_made_by_hand_on_every_family(any_model):
    assert_by_hand(any_model, "mlp_out")


@pytest.mark.parametrize("site", ["resid_post", "z"])
def test_joint_exchanges_are_those_made_by_hand_at_every_site(site, model):
    assert_by_hand(model, site)


def assert_by_hand(any_model, site):
    edit, items = fitted(any_model, site=site), contrasts(2)
    found = sl.recovery(any_model, edit, items, sizes=[4], draws=0)
    nodes, effect = found.top(4), sl.effect(any_model, edit, items)
    kept = exchanged_by_hand(any_model, items, edit, "edited", nodes, edited=False) - effect.before_items
    lost = effect.after_items - exchanged_by_hand(any_model, items, edit, "unedited", nodes, edited=True)
    torch.testing.assert_close(found.item_values[:, 0], kept, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(found.item_losses[:, 0], lost, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("method", ["sufficiency", "necessity", "gradient"])
def test_single_heads_are_those_of_head_contributions(method, model):
    edit, items = fitted(model), contrasts(4)
    study = Study.of(model, edit, items)
    nodes = Nodes.of(study, mlps=False)
    found = measured_nodes(nodes, study, method)
    expected = sl.head_contributions(model, edit, items, method, sample=0)
    torch.testing.assert_close(found, expected.item_values.flatten(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "needed"), [("head", 1), ("series", 1), ("parallel", 2)])
def test_planted_circuits_are_recovered_with_as_many_nodes_as_they_have(name, needed, backend):
    case = planted(name, backend)
    found = sl.recovery(case.model, case.edit, case.contrasts, draws=5)
    planted_heads = set(case.circuit.carried)
    assert set(found.top(needed)) <= planted_heads
    assert found.fewest(0.99) == needed
    shares = dict(zip(found.sizes, (found.values / found.effect).tolist(), strict=True))
    assert shares[0] == 0
    assert shares[needed] == pytest.approx(1, abs=0.01)
    if needed == 2:
        assert shares[1] == pytest.approx(0.5, abs=0.01)
    # Random orders come upon the planted heads later.
    assert found.auc > found.random_aucs.max()
    lost = dict(zip(found.sizes, (found.losses / found.effect).tolist(), strict=True))
    assert lost[needed] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("site", ["z", "mlp_out"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "pythia"])
def test_beside_the_edit_all_nodes_lose_what_is_lost_with_attention_and_mlps_held(family, site, load_tiny):
    model, items = load_tiny(family), contrasts(3)
    edit = fitted(model, site=site)
    found = sl.recovery(model, edit, items, direct=True, draws=0, sizes=[0, 15])
    held = sl.frozen(model, edit, items)
    expected = held.item_values[:, held.held.index("attention_and_mlps")]
    torch.testing.assert_close(found.item_losses[:, -1], expected, rtol=1e-4, atol=2e-5)
    # What no nodes keep is the rest, and with all of them nothing is missing.
    torch.testing.assert_close(found.item_values[:, 0], found.item_effects - expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(found.item_values[:, -1], found.item_effects, rtol=1e-4, atol=2e-5)
    assert found.item_values[:, 0].abs().max() > 1e-4


def test_beside_the_edit_nodes_keep_what_is_lost_without_the_others(model):
    edit, items = fitted(model), contrasts(3)
    found = sl.recovery(model, edit, items, direct=True, draws=0)
    effect = sl.effect(model, edit, items)
    others = found.nodes[4:]
    held = exchanged_by_hand(model, items, edit, "unedited", others, edited=True)
    torch.testing.assert_close(found.item_values[:, 4], held - effect.before_items, rtol=1e-4, atol=2e-5)
    # All nodes and the edit are the whole of it; none are what frozen heads and MLPs leave.
    torch.testing.assert_close(found.item_values[:, -1], effect.items, rtol=1e-4, atol=2e-5)
    left = sl.frozen(model, edit, items)
    assert found.values[0].item() == pytest.approx(
        left.left[left.held.index("attention_and_mlps")].item(), rel=1e-4, abs=2e-5
    )
    assert "the edit itself and" in str(found)


def test_in_a_greedy_order_the_other_of_a_pair_follows_the_one(build, backend):
    case = build("both_heads", backend)
    items = case.contrasts[:2]
    found = sl.recovery(case.model, case.edit, items, "greedy", mlps=False, draws=0)
    pair = {(1, 0), (1, 3)}
    places = sorted(found.nodes.index(head) for head in pair)
    # Each alone adds nothing, so that the first is taken by chance; then the other adds everything.
    assert places[1] == places[0] + 1
    assert found.fewest(0.99) == places[1] + 1
    # With MLPs the one that multiplies what the two write carries all of it.
    assert sl.recovery(case.model, case.edit, items, "greedy", sizes=[1], draws=0).fewest(0.99) == 1


def test_a_greedy_order_is_no_worse_than_single_ranks_where_it_was_chosen(model):
    edit, items = fitted(model), contrasts(3)
    greedy, single = (
        sl.recovery(model, edit, items, heads, sizes=[0, 1, 2], draws=0) for heads in ("greedy", "sufficiency")
    )
    assert sorted(map(str, greedy.nodes)) == sorted(map(str, single.nodes))
    sign = 1 if greedy.effect >= 0 else -1
    assert sign * greedy.values[1] >= sign * single.values[1] - 1e-9
    gains = [sign * greedy.values[k].item() for k in (1, 2)]
    assert (
        gains[1]
        >= max(
            sign * sl.interactions(model, edit, items, of=[greedy.nodes[0], other], method="only_one").joint
            for other in greedy.nodes[1:6]
        )
        - 1e-5
    )


def test_an_edit_that_acts_on_the_logits_alone_is_carried_by_no_node(backend):
    case = planted("direct", backend)
    found = sl.recovery(case.model, case.edit, case.contrasts, draws=0)
    assert found.fewest(0.05) is None
    assert abs(found.ceiling) < 0.01
    assert "no number of 15 nodes keeps 0.8 of it" in str(found)
    beside = sl.recovery(case.model, case.edit, case.contrasts, direct=True, draws=0)
    assert beside.fewest(0.99) == 0


def test_nodes_are_ranked_on_one_half_and_measured_on_the_other(model):
    edit, items = fitted(model), list(contrasts(24))
    found = sl.recovery(model, edit, items, sizes=[1, 2], draws=2, control=[sl.randomised(edit, 0), edit])
    assert found.held_out
    assert len(found.item_values) == 12
    effects = sl.effect(model, edit, items).items
    torch.testing.assert_close(found.item_effects, effects[1::2], rtol=1e-5, atol=1e-6)
    # What the measured half says cannot change the order.
    turned = [item if i % 2 == 0 else sl.Contrast(item.prompt, item.foil, item.target) for i, item in enumerate(items)]
    assert sl.recovery(model, edit, turned, sizes=[1], draws=0).nodes == found.nodes
    # An edit beside itself gives its own curve.
    torch.testing.assert_close(found.control_values[1], found.values)
    assert not torch.allclose(found.control_values[0], found.values)
    assert not sl.recovery(model, edit, items[:6], sizes=[1], draws=0).held_out


def test_a_recovery_is_a_table_and_a_figure(model):
    edit = fitted(model)
    found = sl.recovery(model, edit, contrasts(3), draws=3, control=[sl.randomised(edit, 0)])
    frame = found.to_frame()
    assert frame["k"].tolist() == list(found.sizes) == list(range(16))
    assert frame["kept"].tolist() == found.values.tolist()
    assert (frame["random_low"] <= frame["random_high"]).all()
    shares = (found.values / found.effect).numpy()
    middle = (shares[1:] + shares[:-1]) / 2
    assert found.auc == pytest.approx(float(np.sum(middle) / 15))
    assert frame["node"].iloc[1] == ".".join(map(str, found.nodes[0]))
    found.plot()
    plt.close("all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": "direct"}, "unknown heads 'direct': expected one of sufficiency, necessity, gradient, greedy"),
        ({"sizes": [16]}, "sizes up to 16: the model has 15 nodes"),
        ({"draws": -1}, "draws"),
        ({"direct": "no"}, "direct 'no': expected True or False"),
        ({"direct": None}, "direct None: expected True or False"),
        ({"mlps": 0}, "mlps 0: expected True or False"),
    ],
)
def test_impossible_recoveries_are_refused(options, message, model):
    # Without the checks of types that tests add.
    call = inspect.unwrap(sl.recovery)
    with pytest.raises(sl.InputError, match=message):
        call(model, fitted(model), contrasts(2), **options)


def recovered(effects, values, *, held_out=True, sizes=(0, 1, 2)):
    """A result of two nodes by its numbers."""
    effects, values = torch.tensor(effects, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    none = torch.zeros(0, len(sizes), dtype=torch.float64)
    items = values.expand(len(effects), -1)
    return sl.Recovery(
        ((0, 0), (0, "mlp")), "greedy", False, sizes, effects, items, items, none, none, none, none, held_out
    )


def test_no_share_is_told_of_an_effect_that_may_be_nothing():
    doubtful = recovered([1.0, -1.0, 2.0, -1.5, 0.5], [0.0, 0.1, 0.2])
    assert not doubtful.tells_shares
    assert "no share of it is told, since its interval contains 0" in str(doubtful)
    assert "area" not in str(doubtful)
    sure = recovered([1.0, 1.1, 0.9, 1.2, 1.05], [0.0, 0.9, 1.0])
    assert sure.tells_shares
    assert "1 of 2 nodes keep 0.8 of it; area" in str(sure)
    assert "on 5 contrasts that nodes were not ranked on" in str(sure)
    same = recovered([1.0, 1.1, 0.9], [0.0, 0.9, 1.0], held_out=False)
    assert "on 3 contrasts that nodes were ranked on too" in str(same)


def test_rounding_has_no_shares(model):
    found = sl.recovery(model, fitted(model), contrasts(4), strength=0, draws=2)
    assert not found.tells_shares
    assert found.fewest() is None
    assert np.isnan([found.ceiling, found.auc]).all()
    assert found.others_fewest() == {"random": [None, None], "control": []}
    assert found.to_frame()["kept_share"].isna().all()
    assert "there is no effect but rounding" in str(found)
    found.plot()
    plt.close("all")


def test_an_area_is_that_of_the_whole_curve_only_where_sizes_span_it():
    part = recovered([1.0, 1.1, 0.9], [0.0, 0.9], sizes=(0, 1))
    assert not part.spans
    assert "area" not in str(part)
