"""From which edited layer into which head, by which way: against path patching written in plain transformers."""

import matplotlib.pyplot as plt
import pytest
import torch
from plain import Plain, alone, exchanged
from tiny import N_LAYERS, PAIRS, contrasts, fitted

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.models.tokens import encode

pytestmark = pytest.mark.model


def plain_edge(plain, ids, moved, edge):
    """Logits with the displacement of one layer let into one receiver."""
    layer, to_layer, to, way = edge
    if to == "logits":
        behind = lambda _, __, out: exchanged(out, alone(out) + moved[layer])  # noqa: E731
        return plain.run(ids, [(plain.blocks[-1], behind)])[0]
    if to == "mlp":
        reader = plain.mlp_input(to_layer)
        _, seen = plain.run(ids, saved=[("read", reader, "in")])
        change = (reader, lambda _, __, ___: reader.forward(seen["read"] + moved[layer]))
        return plain.run(ids, [change])[0]
    _, seen = plain.run(ids, saved=[("stream", plain.blocks[to_layer], "in")])
    hooks = plain.way(to_layer, way, seen["stream"] + moved[layer])
    _, seen = plain.run(ids, hooks, saved=[("z", plain.output(to_layer), "in")])
    return plain.run(ids, plain.with_z(to_layer, to, seen["z"]))[0]


def in_plain(plain, lens, edit, positions, item, edges):
    """What each edge changes of log p(target) − log p(foil), from runs of prompt and completion."""
    found = dict.fromkeys(edges, 0.0)
    start = len(encode(lens, item.prompt))
    for sign, text in ((1, item.target), (-1, item.foil)):
        ids = torch.tensor([encode(lens, item.prompt + text)])

        def log_prob(logits, ids=ids):
            log_probs = logits.double().log_softmax(-1)[0, :-1]
            return log_probs.gather(1, ids[0, 1:, None])[start - 1 :].sum().item()

        before, moved = log_prob(plain.run(ids)[0]), plain.displacements(ids, edit, start, positions)
        for edge in edges:
            found[edge] += sign * (log_prob(plain_edge(plain, ids, moved, edge)) - before)
    return found


def assert_is_path_patching(family, site, positions, backend, load_tiny, model_folders):
    model, plain = load_tiny(family, backend), Plain(model_folders[family])
    edit, items, lens = fitted(model, site=site), list(contrasts(2)), Lens.of(model)
    found = sl.mediation(model, edit, items, "exact", positions=positions, batch_size=64)
    size = max(found.item_effects.abs().max().item(), found.values.abs().max().item())
    edges = [(0, 1, 1, way) for way in "qkv"] + [(0, 2, 3, "k"), (1, 2, 0, "v")]
    edges += [(0, to, "mlp", "in") for to in (1, 2)] + [(at, N_LAYERS, "logits", "in") for at in (1, 2)]
    # The MLP behind what is edited, where its block has it behind attention.
    own = [(1, 1, "mlp", "in")] if site in ("attn_out", "z") and family != "pythia" else []
    assert set(own) == {edge for edge in found.labels if edge[:2] == (1, 1)}
    for place, item in enumerate(items):
        for edge, expected in in_plain(plain, lens, edit, positions, item, edges + own).items():
            ours = found.item_values[place, found.labels.index(edge)].item()
            assert ours == pytest.approx(expected, abs=1e-4 * size), edge


@pytest.mark.parametrize(("site", "positions"), [("mlp_out", "all"), ("z", "from_last_prompt")])
@pytest.mark.parametrize(("family", "backend"), PAIRS)
def test_exact_mediation_is_path_patching_in_plain_transformers(
    family, backend, site, positions, load_tiny, model_folders
):
    assert_is_path_patching(family, site, positions, backend, load_tiny, model_folders)


# Query heads that share keys and values; a block whose MLP reads beside attention; norms behind attention and the MLP,
# and behind them alone.
@pytest.mark.parametrize(("site", "positions"), [("attn_out", "answer"), ("resid_post", "prompt")])
@pytest.mark.parametrize("family", ["llama", "pythia", "gemma2", "olmo3"])
def test_exact_mediation_is_path_patching_at_every_site(family, backend, site, positions, load_tiny, model_folders):
    assert_is_path_patching(family, site, positions, backend, load_tiny, model_folders)


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
