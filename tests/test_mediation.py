"""From which edited layer into which head, by which way: against path patching written in plain transformers."""

import matplotlib.pyplot as plt
import pytest
import torch
from plain import Plain
from tiny import FAMILIES, N_LAYERS, contrasts, fitted, save_tiny_model

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.models.tokens import encode

pytestmark = pytest.mark.model


def plain_edge(plain, ids, edit, edge):
    """Logits with the displacement of one layer let into one receiver."""
    layer, to_layer, to, way = edge
    moved = {}

    def editing(at):
        def hook(_, __, out):
            new = edit(out, at)
            moved[at] = new - out
            return new

        return hook

    plain.run(ids, [(plain.mlp(at), editing(at)) for at in range(N_LAYERS)])
    if to == "logits":
        module = plain.blocks[-1]

        def behind(_, __, out):
            return (out[0] + moved[layer], *out[1:]) if isinstance(out, tuple) else out + moved[layer]

        return plain.run(ids, [(module, behind)])[0]
    if to == "mlp":
        reader = plain.mlp_input(to_layer)
        _, seen = plain.run(ids, saved=[("read", reader, "in")])
        change = (reader, lambda _, __, ___: reader.forward(seen["read"] + moved[layer]))
        return plain.run(ids, [change])[0]
    _, seen = plain.run(ids, saved=[("stream", plain.norm(to_layer), "in")])
    hooks = plain.way(to_layer, way, seen["stream"] + moved[layer])
    _, seen = plain.run(ids, hooks, saved=[("z", plain.output(to_layer), "in")])
    return plain.run(ids, plain.with_z(to_layer, to, seen["z"]))[0]


def contrast(lens, item, run):
    """log p(target) − log p(foil) from runs of prompt and completion."""
    total = 0.0
    start = len(encode(lens, item.prompt))
    for sign, text in ((1, item.target), (-1, item.foil)):
        ids = torch.tensor([encode(lens, item.prompt + text)])
        log_probs = run(ids).double().log_softmax(-1)[0, :-1]
        total += sign * log_probs.gather(1, ids[0, 1:, None])[start - 1 :].sum().item()
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_mediation_is_path_patching_in_plain_transformers(family, tmp_path, backend, load_tiny):
    model = load_tiny(family, backend)
    edit, items, lens = fitted(model), list(contrasts(2)), Lens.of(model)
    plain = Plain(save_tiny_model(family, tmp_path))
    found = sl.mediation(model, edit, items, "exact")
    size = max(found.item_effects.abs().max().item(), found.values.abs().max().item())
    chosen = {(0, 1, 1, way) for way in "qkv"} | {(0, 2, 3, "k"), (1, 2, 0, "v"), (0, 1, "mlp", "in")}
    chosen |= {(0, 2, "mlp", "in"), (1, N_LAYERS, "logits", "in"), (2, N_LAYERS, "logits", "in")}
    for edge in sorted(chosen, key=str):
        for place, item in enumerate(items):
            before = contrast(lens, item, lambda ids: plain.run(ids)[0])
            after = contrast(lens, item, lambda ids, edge=edge: plain_edge(plain, ids, edit, edge))
            ours = found.item_values[place, found.labels.index(edge)].item()
            assert ours == pytest.approx(after - before, abs=1e-4 * size + 2e-5), edge


def test_estimates_are_slopes_of_exact_mediation_and_add_up_on_every_family(any_model):
    assert_slopes(any_model, "mlp_out")


@pytest.mark.parametrize("site", ["attn_out", "resid_post", "z"])
def test_estimates_are_slopes_of_exact_mediation_and_add_up_at_every_site(site, model):
    assert_slopes(model, site)


def assert_slopes(any_model, site):
    edit, items = fitted(any_model, site=site), contrasts(2)
    strength = 0.01
    estimated = sl.mediation(any_model, edit, items, exact=0, strength=strength)
    exact = sl.mediation(any_model, edit, items, "exact", strength=strength)
    assert estimated.labels == exact.labels
    size = exact.values.abs().max()
    assert (estimated.values - exact.values).abs().max() < 0.03 * size + 1e-5
    # A small edit's effect is the sum of what passes along all edges.
    total = sum(estimated.by_layer().values())
    assert total == pytest.approx(estimated.effect, abs=0.03 * abs(estimated.effect) + 1e-4)
    assert sum(estimated.by_way().values()) == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("site", ["mlp_out", "attn_out", "resid_post"])
def test_the_whole_change_by_all_ways_is_sufficiency(site, model):
    edit, items = fitted(model, site=site), contrasts(2)
    found = sl.mediation(model, edit, items, "exact", whole=True)
    heads = sl.head_contributions(model, edit, items, "sufficiency")
    torch.testing.assert_close(found.heads("all", "all"), heads.values, rtol=1e-4, atol=2e-5)


def test_the_strongest_estimates_stand_beside_exact_values(model):
    edit, items = fitted(model), contrasts(3)
    found = sl.mediation(model, edit, items, exact=5)
    exact = sl.mediation(model, edit, items, "exact")
    assert found.details["edges"] == [edge for edge, _ in found.top(5)]
    expected = [exact.values[exact.labels.index(edge)].item() for edge in found.details["edges"]]
    assert found.details["exact"] == pytest.approx(expected, abs=1e-6)
    both = torch.tensor([found.details["estimated"], found.details["exact"]])
    assert found.details["correlation"] == pytest.approx(torch.corrcoef(both)[0, 1].item(), abs=1e-4)


def test_mediation_is_a_table_and_a_figure_beside_its_control(model):
    edit = fitted(model)
    found = sl.mediation(model, edit, contrasts(3), exact=0, control=[sl.randomised(edit, 0), edit])
    assert found.control_values is not None
    torch.testing.assert_close(found.control_values[1], found.values)
    frame = found.to_frame()
    assert frame["value"].tolist() == found.values.tolist()
    assert set(frame["way"]) == {"q", "k", "v", "in"}
    assert found.heads("q")[0].abs().max() == 0
    by_hand = frame.query("to == '2' and way == 'k' and to_layer == 2")["value"].sum()
    assert found.heads("k")[2, 2].item() == pytest.approx(by_hand)
    found.plot()
    plt.close("all")


def test_what_cannot_be_mediated_is_refused(model):
    with pytest.raises(sl.InputError, match="unknown method 'path': expected one of gradient, exact"):
        sl.mediation(model, fitted(model), contrasts(2), "path")
    with pytest.raises(sl.UnsupportedModelError, match="adds up to another slope than its own"):
        sl.mediation(model, fitted(model), contrasts(2), tolerance=0.0)
