from typing import Any

import pytest
import torch
from plain import HEADS, Plain
from tiny import BACKENDS, FAMILIES, N_LAYERS, contrasts, fitted

import sea_lens as sl
from sea_lens.measure.scorer import contrast_scorer, contrast_values
from sea_lens.models.lens import Lens
from sea_lens.models.tokens import encode

pytestmark = pytest.mark.model


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
        hooks: list[tuple[str, Any]] = [(last, remove)]
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


def written_by_heads(plain, ids, edit, pair):
    """Logit difference that each head writes at the last position of the edited run, (layers, heads)."""
    points = [("final", plain.blocks[-1], "out")]
    points += [(layer, plain.output(layer), "in") for layer in range(N_LAYERS)]
    _, seen = plain.run(ids, [] if edit is None else plain.editing(edit, {}), points)

    def linear(norm, x):
        # What a norm without a mean or a bias multiplies each entry by, where it reads x.
        return norm.forward(x) / x

    u = plain.model.lm_head.weight[pair[0]] - plain.model.lm_head.weight[pair[1]]
    read = linear(plain.model.model.norm, seen["final"][0, -1]) * u
    found = torch.zeros(N_LAYERS, HEADS, dtype=torch.float64)
    for layer in range(N_LAYERS):
        z, output = seen[layer][:, -1:].unflatten(-1, (HEADS, -1)), plain.output(layer)
        z = edit(z, layer) if edit is not None and edit.site == "z" else z
        behind = linear(plain.norm_behind("attention", layer), output.forward(z.flatten(-2)))
        for head in range(HEADS):
            alone = torch.zeros_like(z)
            alone[..., head, :] = z[..., head, :]
            found[layer, head] = (output.forward(alone.flatten(-2)) * behind)[0, -1] @ read
    return found


BEHIND = [(family, backend) for family in ("gemma2", "olmo3") for backend in BACKENDS] + [("olmo2", "bridge")]


@pytest.mark.parametrize("site", ["attn_out", "z"])
@pytest.mark.parametrize(("family", "backend"), BEHIND)
def test_behind_a_norm_direct_contributions_are_what_heads_write_in_plain_transformers(
    family, backend, site, load_tiny, model_folders
):
    model, plain = load_tiny(family, backend), Plain(model_folders[family])
    lens, edit, (item,) = Lens.of(model), fitted(model, site=site), contrasts(1)
    ids = torch.tensor([encode(lens, item.prompt)])
    pair = [encode(lens, item.prompt + text)[ids.shape[1]] for text in (item.target, item.foil)]
    with torch.no_grad():
        expected = written_by_heads(plain, ids, edit, pair) - written_by_heads(plain, ids, None, pair)
    found = sl.head_contributions(model, edit, [item])
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-5)
    assert expected.abs().max() > 0.01
    assert found.total == pytest.approx(found.effect, abs=1e-5)


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


def in_a_plain_loop(model, edit, items, method):
    """Patch one head in one contrast at a time, by hooks of its own."""
    lens = Lens.of(model)
    hooks = edit.functions(model, edit.check(model))
    values = torch.zeros(len(items), lens.n_layers, lens.n_heads, dtype=torch.float64)
    for i, item in enumerate(items):
        scorer = contrast_scorer(model, [item])

        def run(hooks, scorer=scorer):
            with lens.hooks(hooks):
                return contrast_values(scorer.log_probs()).item()

        def heads_of(hooks, scorer=scorer):
            seen = {}
            points = [f"blocks.{layer}.attn.hook_z" for layer in range(lens.n_layers)]
            for number, batch in enumerate(scorer.batches):
                seen[number] = lens.read(batch.tokens, batch.mask, points, hooks)
            return seen

        for layer in range(lens.n_layers):
            point = f"blocks.{layer}.attn.hook_z"
            for head in range(lens.n_heads):
                source = heads_of(hooks if method == "sufficiency" else [])
                calls = iter(range(len(source)))

                def patch(z, source=source, calls=calls, point=point, head=head):
                    patched = z.clone()
                    patched[:, :, head] = source[next(calls)][point][:, :, head]
                    return patched

                base = [] if method == "sufficiency" else hooks
                change = run([*base, (point, patch)]) - run(base)
                values[i, layer, head] = change if method == "sufficiency" else -change
    return values


@pytest.mark.parametrize("method", ["sufficiency", "necessity"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_batched_patching_is_patching_one_head_in_one_contrast_at_a_time(family, method, load_tiny, backend):
    model = load_tiny(family, backend)
    edit, items = fitted(model), contrasts(2)
    expected = in_a_plain_loop(model, edit, items, method)
    for batch_size in (5, 64):
        found = sl.head_contributions(model, edit, items, method, batch_size=batch_size)
        torch.testing.assert_close(found.item_values, expected, rtol=1e-3, atol=2e-5)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found.item_effects, sl.effect(model, edit, items).items, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("site", sl.SITES)
def test_an_edit_of_the_last_layer_reaches_its_own_heads_at_most(site, model):
    edit = fitted(model, site=site)
    layer = N_LAYERS - 1
    found = sl.head_contributions(model, edit, contrasts(), "sufficiency", layers=[layer])
    if site == "z":
        assert found.values[layer].abs().max() > 0
        assert found.values[:layer].abs().max() == 0
    else:
        # An edit behind the last attention reaches no head.
        assert found.values.abs().max() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_the_slope_of_patching(family, load_tiny, backend):
    model = load_tiny(family, backend)
    edit, items, small = fitted(model), contrasts(4), 2e-2
    gradient = sl.head_contributions(model, edit, items, "gradient", strength=small, sample=0)
    exact = sl.head_contributions(model, edit, items, "sufficiency", strength=small)
    size = exact.values.abs().max().item()
    torch.testing.assert_close(gradient.values, exact.values, rtol=0, atol=0.05 * size + 2e-6)


def test_the_gradient_reports_how_well_it_agrees_with_exact_values(model):
    edit, items = fitted(model), contrasts()
    found = sl.head_contributions(model, edit, items, "gradient", sample=6, seed=3)
    exact = sl.head_contributions(model, edit, items, "sufficiency")
    sampled = found.details["sampled_heads"]
    assert len(set(sampled)) == 6
    pair = torch.tensor([[found.values[head], exact.values[head]] for head in sampled]).T
    assert found.details["correlation"] == pytest.approx(torch.corrcoef(pair)[0, 1].item(), abs=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "correlation to exact" in " ".join(found.plot().get_title().split())


@pytest.mark.parametrize("method", ["sufficiency", "gradient"])
def test_patching_refuses_a_model_whose_z_leads_nowhere(method, model):
    name = "blocks.1.hook_attn_out"
    constant = torch.ones(())
    model.hook_dict[name].add_hook(lambda x, hook: x * 0 + constant)
    try:
        with pytest.raises(sl.UnsupportedModelError, match=r"attention output at layer 1 does not change"):
            sl.head_contributions(model, fitted(model), contrasts(), method)
    finally:
        model.hook_dict[name].remove_hooks(including_permanent=True)


def test_heads_that_are_edited_are_told_apart_as_layers_are(model):
    edit, items = fitted(model, site="z"), contrasts(2)

    def effect_of(*heads):
        strengths = {layer: torch.zeros(4) for layer in range(N_LAYERS)}
        for layer, head in heads:
            strengths[layer][head] = 0.9
        return sl.effect(model, edit, items, strength=strengths).items

    every = [(layer, head) for layer in range(N_LAYERS) for head in range(4)]
    alone = sl.head_contributions(model, edit, items, "only_one", strength=0.9)
    without = sl.head_contributions(model, edit, items, "leave_one_out", strength=0.9)
    for layer, head in every:
        rest = [other for other in every if other != (layer, head)]
        torch.testing.assert_close(alone.item_values[:, layer, head], effect_of((layer, head)), rtol=1e-3, atol=1e-5)
        left = effect_of(*every) - effect_of(*rest)
        torch.testing.assert_close(without.item_values[:, layer, head], left, rtol=1e-3, atol=1e-5)
    integrated = sl.head_contributions(model, edit, items, "path", strength=0.9)
    by_layer = sl.layer_contributions(model, edit, items, "path", strength=0.9)
    torch.testing.assert_close(integrated.values.sum(1), by_layer.values, rtol=1e-3, atol=1e-5)
    sampled = sl.head_contributions(model, edit, items, "shapley", strength=0.9, permutations=3)
    assert sampled.closure_error < 1e-6
    some = sl.head_contributions(model, edit, items, "path", layers=[1], strength=0.9)
    assert some.values[[0, 2]].abs().max() == 0


def test_unknown_methods_are_refused(model):
    edit = fitted(model)
    with pytest.raises(sl.InputError, match="unknown method 'attention': expected one of direct"):
        sl.head_contributions(model, edit, contrasts(), "attention")
    with pytest.raises(sl.InputError, match="unknown method 'path' for an edit at site 'mlp_out'"):
        sl.head_contributions(model, edit, contrasts(), "path")


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
