import itertools
import math

import matplotlib.pyplot as plt
import pytest
import torch
from tiny import FAMILIES, N_LAYERS, contrasts, fitted

import sea_lens as sl
from sea_lens.contributions import layers as layers_module
from sea_lens.models.lens import Lens
from sea_lens.models.texts import encode

pytestmark = pytest.mark.model
STRENGTH = 0.9


def effects_of_coalitions(model, edit, items):
    """Effect of every set of edited layers, each measured by itself."""
    found = {(): 0.0}
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
    assert found.closure_error < 1e-6


def test_path_contributions_sum_to_the_effect(any_model):
    found = sl.layer_contributions(any_model, fitted(any_model), contrasts(), "path", strength=STRENGTH)
    assert found.closure_error <= 1e-3 * abs(found.effect) + 1e-6
    assert found.item_values.shape == (6, N_LAYERS)


def test_the_gradient_of_the_path_is_that_of_finite_differences(model):
    edit, items, step = fitted(model), contrasts(), 1e-2
    scorer = layers_module.contrast_scorer(model, items)
    game = layers_module._Game(model, edit, scorer, (0, 1, 2), {0: 1.0, 1: 0.5, 2: 2.0}, None)
    gradient = layers_module._gradient(game, 0.6)
    for layer, scale in ((0, 1.0), (1, 0.5), (2, 2.0)):

        def value(t, layer=layer):
            strengths = {0: 0.6, 1: 0.3, 2: 1.2}
            strengths[layer] *= t / 0.6
            return sl.effect(model, edit, items, strength=strengths).after_items

        difference = (value(0.6 + step) - value(0.6 - step)) / (2 * step)
        torch.testing.assert_close(gradient[:, layer], difference, rtol=2e-2, atol=2e-3, msg=f"{layer} {scale}")


def test_sampled_shapley_values_agree_with_exact_ones_and_sum_to_the_effect(model, monkeypatch):
    edit, items = fitted(model), contrasts()
    exact = sl.layer_contributions(model, edit, items, "shapley")
    monkeypatch.setattr(layers_module, "MAX_EXACT_LAYERS", 2)
    sampled = sl.layer_contributions(model, edit, items, "shapley", permutations=40)
    assert sampled.details["exact"] is False
    assert sampled.closure_error < 1e-6
    for i, error in enumerate(sampled.details["standard_errors"]):
        assert abs(sampled.values[i] - exact.values[i]) <= 4 * error + 1e-6


def test_a_path_that_does_not_close_says_so(model, monkeypatch):
    monkeypatch.setattr(layers_module, "MAX_NODES", 4)
    with pytest.warns(UserWarning, match=r"close to .* nats with 4 nodes"):
        sl.layer_contributions(model, fitted(model), contrasts(), "path", tolerance=1e-12)


def oracle_logit_differences(model, items):
    """Logit difference of first tokens at the last prompt position, from a forward of its own, before any soft cap."""
    lens = Lens.of(model)
    found = []
    for item in items:
        ids = torch.tensor([encode(lens, item.prompt)])
        target, foil = (encode(lens, item.prompt + text)[ids.shape[1]] for text in (item.target, item.foil))
        logits = lens.forward(ids, torch.ones_like(ids)).detach()[0, -1].double()
        cap = float(getattr(model.cfg, "output_logits_soft_cap", 0) or 0)
        if cap > 0:
            logits = cap * torch.atanh(logits / cap)
        found.append((logits[target] - logits[foil]).item())
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("site", sl.SITES)
def test_direct_contributions_close_on_every_family(site, any_model):
    edit, items = fitted(any_model, site=site), contrasts()
    before = oracle_logit_differences(any_model, items)
    with edit.applied(any_model):
        after = oracle_logit_differences(any_model, items)
    found = sl.head_contributions(any_model, edit, items)
    torch.testing.assert_close(found.item_effects, after - before, rtol=1e-3, atol=1e-4)
    assert found.closure_error < 1e-4
    assert found.total == pytest.approx(found.effect, abs=1e-4)
    assert found.values.shape == (N_LAYERS, 4)


@pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale")
def test_the_direct_contribution_of_a_head_is_what_is_lost_when_its_output_is_taken_away(load_tiny, backend):
    # With the last layer's attention output held, and the final norm's scale held, removing one head of the last layer
    # changes the logit difference by exactly its direct contribution, in a model whose blocks are parallel.
    model = load_tiny("pythia", backend)
    lens, items = Lens.of(model), contrasts(1)
    edit = fitted(model)
    ids = torch.tensor([encode(lens, items[0].prompt)])
    last = f"blocks.{N_LAYERS - 1}.attn.hook_z"
    pair = [encode(lens, items[0].prompt + text)[ids.shape[1]] for text in (items[0].target, items[0].foil)]

    def without(head, scale=None):
        def remove(z):
            z = z.clone()
            if head is not None:
                z[:, -1, head] = 0
            return z

        scales = []
        hooks = [(last, remove)]
        hooks.append(("ln_final.hook_scale", (lambda x: scale) if scale is not None else lambda x: scales.append(x)))
        with lens.hooks(hooks), torch.no_grad():
            logits = lens.forward(ids, torch.ones_like(ids))[0, -1].double()
        return (logits[pair[0]] - logits[pair[1]]).item(), scales

    def contribution(head):
        whole, scales = without(None)
        return whole - without(head, scales[0])[0]

    unedited = [contribution(head) for head in range(4)]
    with edit.applied(model):
        edited = [contribution(head) for head in range(4)]
    expected = torch.tensor(edited, dtype=torch.float64) - torch.tensor(unedited, dtype=torch.float64)
    found = sl.head_contributions(model, edit, items)
    torch.testing.assert_close(found.values[-1], expected, rtol=1e-3, atol=1e-4)


def test_direct_refuses_a_model_whose_parts_do_not_add_up(model):
    name = "blocks.1.hook_attn_out"
    model.hook_dict[name].add_hook(lambda x, hook: x + 1.0)
    try:
        with pytest.raises(sl.UnsupportedModelError, match=r"do not sum to the attention output at layer 1 \(off by"):
            sl.head_contributions(model, fitted(model), contrasts())
    finally:
        model.hook_dict[name].remove_hooks(including_permanent=True)


def test_direct_refuses_contrasts_that_it_cannot_measure(model):
    edit = fitted(model)
    with pytest.raises(sl.DemonstrationError, match="contrast 0: target and foil begin with the same token"):
        sl.head_contributions(model, edit, [sl.Contrast("w1", " w2 w3", " w2 w4")])
    with pytest.raises(sl.DemonstrationError, match="changes the tokens of its prompt"):
        sl.head_contributions(model, edit, [sl.Contrast("w1", "2", " w4")])


def test_unknown_methods_are_refused(model):
    edit = fitted(model)
    with pytest.raises(sl.InputError, match="unknown method 'banzhaf': expected one of path, shapley"):
        sl.layer_contributions(model, edit, contrasts(), "banzhaf")
    with pytest.raises(sl.InputError, match="unknown method 'attention'"):
        sl.head_contributions(model, edit, contrasts(), "attention")


def test_results_have_labels_tables_and_figures(model):
    edit, items = fitted(model), contrasts()
    by_layer = sl.layer_contributions(model, edit, items, "leave_one_out", layers=[0, 2])
    assert by_layer.layers == (0, 2)
    assert [layer for layer, _ in by_layer.top(1)] == [(0, 2)[int(by_layer.values.abs().argmax())]]
    frame = by_layer.to_frame()
    assert frame["layer"].tolist() == [0, 2]
    assert (frame["low"] <= frame["value"]).all()
    assert (frame["value"] <= frame["high"]).all()
    heads = sl.head_contributions(model, edit, items, layers=[0, 2])
    (layer, head), value = heads.top(1)[0]
    assert value == heads.values[layer, head]
    assert abs(value) == heads.values.abs().max()
    table = heads.to_frame()
    assert math.isclose(table["value"].sum(), heads.total, abs_tol=1e-9)
    assert set(table["component"]) == {"head", "embedding", "attention_bias", "mlp", "edit"}
    for axes in (by_layer.plot(), heads.plot(), sl.effect(model, edit, items).plot()):
        assert axes.get_title()
        assert axes.get_xlabel()
        plt.close(axes.get_figure())


@pytest.mark.parametrize("family", FAMILIES)
def test_backends_agree_on_contributions(family, load_tiny):
    pytest.importorskip("transformer_lens.HookedTransformer")
    edit = fitted(load_tiny(family, "bridge"))
    hooked, bridge = (
        (
            sl.head_contributions(load_tiny(family, backend), edit, contrasts()).values,
            sl.layer_contributions(load_tiny(family, backend), edit, contrasts()).values,
        )
        for backend in ("hooked", "bridge")
    )
    for ours, theirs in zip(hooked, bridge, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)
