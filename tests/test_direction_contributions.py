from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from plain import HEADS, Plain
from test_subspaces import subspaces
from tiny import N_LAYERS, WORDS, contrasts, demonstrations, fitted

import sea_lens as sl
from sea_lens.spectral.arithmetic import COMBINES, edit_activation
from sea_lens.spectral.direction_terms import direction_terms
from sea_lens.spectral.edit import with_subspaces
from sea_lens.spectral.features import FEATURE_MAPS
from sea_lens.spectral.net import eigenvalue_sizes, net_subspaces, planes


@st.composite
def edits(draw):
    d = draw(st.integers(1, 8))
    keep, drop = draw(st.integers(0, d)), draw(st.integers(0, d))
    x = draw(arrays("float64", (3, 1, d), elements=st.floats(-20, 20, width=32)))
    feature = FEATURE_MAPS[draw(st.sampled_from(sorted(FEATURE_MAPS)))]
    fitted = subspaces(d, keep, drop, centre=draw(st.booleans()), seed=draw(st.integers(0, 99)))
    return torch.tensor(x), fitted, feature, draw(st.sampled_from(COMBINES))


@given(edits(), st.integers(0, 99))
def test_the_terms_of_an_edit_add_up_to_what_it_does(case, seed):
    x, fitted, feature, combine = case
    moved = edit_activation(x, fitted, feature, combine=combine) - x
    terms = direction_terms(x, fitted, feature, combine)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    keep, drop, norm, centre = terms.along(gradient)
    total = keep.sum(-1) + drop.sum(-1) + norm + centre
    expected = (gradient * moved).sum(-1)
    # A term can be far larger than their sum, and its rounding with it.
    size = sum(part.abs().max().item() for part in (keep, drop) if part.numel()) + norm.abs().max().item()
    torch.testing.assert_close(total, expected, rtol=1e-7, atol=1e-9 * (1 + size + centre.abs().max().item()))


def test_a_linear_term_is_the_projection_on_its_direction():
    fitted = subspaces(6, 3, 2, seed=4)
    x = torch.randn(5, 1, 6, dtype=torch.float64)
    terms = direction_terms(x, fitted, FEATURE_MAPS["identity"], "norm")
    y = x + x @ fitted.keep[0] @ fitted.keep[0].T - x @ fitted.drop[0] @ fitted.drop[0].T
    r = x.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(terms.keep, r * (x @ fitted.keep[0]))
    torch.testing.assert_close(terms.drop, -r * (x @ fitted.drop[0]))
    torch.testing.assert_close(terms.norm, (r - 1) * x)
    assert terms.centre.abs().max() == 0


@given(edits(), st.integers(0, 99))
def test_an_edit_in_its_net_directions_is_the_same_edit(case, seed):
    x, fitted, _, combine = case
    net, combined = net_subspaces(fitted, combine)
    moved = edit_activation(x, fitted, FEATURE_MAPS["identity"], combine=combine) - x
    terms = direction_terms(x, net, FEATURE_MAPS["identity"], combined)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    keep, drop, norm, centre = terms.along(gradient)
    total = keep.sum(-1) + drop.sum(-1) + norm + centre
    size = x.abs().max() * x.shape[-1] + centre.abs().max()
    torch.testing.assert_close(total, (gradient * moved).sum(-1), rtol=1e-7, atol=1e-9 * (1 + size.item()))


@given(edits())
def test_net_directions_are_orthogonal_eigenvectors_at_the_sines_of_the_principal_angles(case):
    _, fitted, _, _ = case
    net, _ = net_subspaces(fitted, "norm")
    keep, drop = fitted.keep[0], fitted.drop[0]
    difference = keep @ keep.T - drop @ drop.T
    columns = torch.cat([net.keep[0], net.drop[0]], -1)
    sizes = columns.square().sum(0)
    signs = torch.tensor([1.0] * net.keep.shape[-1] + [-1.0] * net.drop.shape[-1], dtype=torch.float64)
    torch.testing.assert_close(difference @ columns, columns * (signs * sizes), rtol=0, atol=1e-9)
    torch.testing.assert_close(columns.T @ columns, torch.diag(sizes), rtol=0, atol=1e-9)
    assert (sizes > 0).all()
    # From the angles: one of each sign for a pair, and 1 for what only one side has.
    cosines = torch.linalg.svdvals(keep.T @ drop) if keep.numel() and drop.numel() else torch.zeros(0)
    sines = (1 - cosines.double().clamp(max=1).square()).sqrt()
    for factor, rank, other in ((net.keep, keep.shape[-1], drop.shape[-1]), (net.drop, drop.shape[-1], keep.shape[-1])):
        expected = (
            torch.cat([torch.ones(max(rank - other, 0), dtype=torch.float64), sines]).sort(descending=True).values
        )
        found = eigenvalue_sizes(factor)[0]
        # The sine of an angle near zero is known to half of the digits.
        torch.testing.assert_close(
            torch.nn.functional.pad(found, (0, len(expected) - len(found))), expected, rtol=0, atol=1e-6
        )


def test_close_eigenvalues_are_one_plane():
    sizes = torch.tensor([1.0, 1.0 - 5e-5, 1.0 - 9e-5, 0.9, 0.5, 0.5])
    assert planes(sizes) == [(0, 3), (3, 1), (4, 2)]
    assert planes(sizes[:0]) == []


LINEAR = [
    {"combine": combine, "centre": centre, "site": site, "strength": strength}
    for combine in COMBINES
    for centre, site, strength in ((False, "mlp_out", 1.7), (True, "resid_post", -0.5), (True, "z", 0.8))
]


@pytest.mark.model
@pytest.mark.parametrize("case", LINEAR, ids=lambda case: "-".join(map(str, case.values())))
def test_net_directions_add_up_to_their_layers_exactly(case, model):
    edit, items = fitted(model, site=case["site"], centre=case["centre"]), contrasts()
    where = {"combine": case["combine"], "strength": case["strength"], "tolerance": 1e9}
    net = sl.direction_contributions(model, edit, items, basis="net", describe=0, **where)
    by_layer = sl.layer_contributions(model, edit, items, **where)
    assert net.basis == "net"
    for layer, value in zip(by_layer.layers, by_layer.values.tolist(), strict=True):
        assert net.by_layer()[layer] == pytest.approx(value, abs=1e-6)
    frame = net.to_frame()
    directions = frame[frame["side"].isin(["+", "-"])]
    assert ((directions["eigenvalue"] > 0) == (directions["side"] == "+")).all()
    assert all(abs(one) <= 1 + 1e-9 for one in directions["eigenvalue"])


@pytest.mark.model
def test_what_both_sides_hold_has_no_net_direction(model):
    edit = fitted(model)
    alike = replace(edit.subspaces[0], drop=edit.subspaces[0].keep[..., :2])
    found = sl.direction_contributions(
        model, with_subspaces(edit, {**edit.subspaces, 0: alike}, "alike"), contrasts(2), describe=0
    )
    assert [label for label in found.labels if label[0] == 0] == [(0, "+", 0), (0, "norm", 0)]
    assert found.eigenvalues[0, "+", 0] == pytest.approx(1)


@pytest.mark.model
def test_a_plane_is_described_as_one(model):
    edit = fitted(model, rank=(2, 0))
    found = sl.direction_contributions(model, edit, contrasts(2), demonstrations=demonstrations(), layers=[1])
    assert found.dimensions == {(1, "+", 0): 2}
    about = found.descriptions[1, "+", 0]
    assert about.displacement > 0
    index, length = about.fires_on[0]
    assert about.texts[0] == demonstrations()[index].neutral
    assert length > 0
    assert [abs(length) for _, length in about.moved] == sorted((abs(one) for _, one in about.moved), reverse=True)
    assert all("«w" in text for text, _ in about.moved)
    assert len({text for text, _ in about.moved}) == len(about.moved)


@pytest.mark.model
@pytest.mark.parametrize("behaviour", ["truth", "bias"])
def test_the_largest_directions_of_a_layer_share_nothing_on_the_shipped_model(behaviour):
    bed = sl.testbed.load()
    one = bed.behaviours[behaviour]
    edit = sl.fit(sl.capture(bed.model, one.demonstrations, site="resid_post", batch_size=64), rank=8)
    items = one.contrasts["dev"][:24]
    for layer in edit.layers:
        found = sl.direction_contributions(bed.model, edit, items, [layer], describe=1)
        assert found.details["most_alike_share"] < 1e-12
    # Kept and dropped directions of the same layer do.
    sides = sl.direction_contributions(bed.model, edit, items, [edit.layers[-1]], basis="sides", describe=1)
    assert sides.details["most_alike_share"] > 0.1


@pytest.mark.model
def test_two_layers_that_edit_one_direction_are_named(model):
    edit = fitted(model, site="resid_post", rank=(1, 1))
    same = replace(edit, subspaces=dict.fromkeys(edit.layers, edit.subspaces[0]), _cast={})
    found = sl.direction_contributions(model, same, contrasts(3), describe=1)
    first, second = found.details["most_alike"]
    assert first[1:] == second[1:]
    assert first[0] != second[0]
    assert found.details["most_alike_share"] == pytest.approx(1)


@pytest.mark.model
def test_controls_stand_beside_net_directions_in_the_same_places(model):
    edit = fitted(model)
    control = [sl.randomised(edit, 0), edit]
    found = sl.direction_contributions(model, edit, contrasts(2), describe=0, control=control)
    assert found.control_values is not None
    torch.testing.assert_close(found.control_values[1], found.values, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(found.control_values[0], found.values)
    found.plot()


@pytest.mark.model
@pytest.mark.parametrize(
    ("basis", "options", "message"),
    [
        ("sideways", {}, "unknown basis 'sideways': expected one of net, sides"),
        ("net", {"feature": "squared_exponential"}, "no net directions: expected basis='sides'"),
    ],
)
def test_an_impossible_basis_is_refused(basis, options, message, model):
    with pytest.raises(sl.InputError, match=message):
        sl.direction_contributions(model, fitted(model, **options), contrasts(2), basis=basis)


@pytest.mark.model
@pytest.mark.parametrize("options", [{}, {"centre": True}, {"feature": "squared_exponential"}, {"site": "z"}])
def test_directions_add_up_to_their_layers(options, model):
    edit, items = fitted(model, **options), contrasts()
    # Through a clamped feature map the effect jumps and no number of nodes closes: compare at the first four.
    tolerance = 1e9 if "feature" in options else 1e-3
    found = sl.direction_contributions(model, edit, items, strength=0.8, basis="sides", describe=0, tolerance=tolerance)
    by_layer = sl.layer_contributions(model, edit, items, strength=0.8, tolerance=tolerance)
    sums = torch.tensor([found.by_layer()[layer] for layer in range(N_LAYERS)], dtype=torch.float64)
    torch.testing.assert_close(sums, by_layer.values, rtol=1e-3, atol=1e-5)
    units = 4 if edit.site == "z" else 1
    extra = 2 if options.get("centre") or "feature" in options else 1
    assert len(found.directions) == N_LAYERS * units * (3 + 2 + extra)


@pytest.mark.model
def test_directions_add_up_on_every_family(any_model):
    edit, items = fitted(any_model), contrasts()
    found = sl.direction_contributions(any_model, edit, items, combine="reverse", strength=0.8)
    assert found.closure_error <= 1e-3 * abs(found.effect) + 1e-5
    assert len(found.descriptions) == 10


@pytest.mark.model
def test_descriptions_name_what_a_direction_does_and_what_it_fires_on(model):
    demos = demonstrations()
    edit = fitted(model)
    found = sl.direction_contributions(model, edit, contrasts(), basis="sides", demonstrations=demos, describe=3)
    top = [label for label, _ in found.top(len(found.directions)) if label[-2] in "+-"][:3]
    assert list(found.descriptions) == top
    (layer, side, index), description = next(iter(found.descriptions.items()))
    factor = getattr(edit.subspaces[layer], {"+": "keep", "-": "drop"}[side])[0, :, index]
    # What is fired on, from activations read anew.
    lens_tokens = [model.to_tokens(demo.neutral, prepend_bos=True) for demo in demos]
    point = f"blocks.{layer}.hook_mlp_out"
    fired = torch.stack(
        [model.run_with_cache(t, names_filter=point)[1][point][0, -1].double() @ factor for t in lens_tokens]
    )
    assert [i for i, _ in description.fires_on] == fired.abs().argsort(descending=True)[:5].tolist()
    assert description.fires_on[0][1] == pytest.approx(fired.detach().abs().max().item(), rel=1e-4) or (
        description.fires_on[0][1] == pytest.approx(fired.detach().min().item(), rel=1e-4)
    )
    # Which tokens are raised, from the unembedding.
    gain = model.ln_final.w if hasattr(model.ln_final, "w") else model.ln_final.weight
    logits = (factor.float() * gain.detach()) @ model.W_U.detach()
    logits = logits * (1 if description.displacement > 0 else -1)
    best, worst = (model.tokenizer.decode([int(i)]) for i in (logits.argmax(), logits.argmin()))
    assert description.raises[0][0] == best
    assert description.lowers[0][0] == worst
    frame = found.to_frame()
    assert (frame["raises"] != "").sum() == 3


@pytest.mark.model
@pytest.mark.parametrize("family", ["gemma2", "olmo3"])
def test_what_a_heads_direction_raises_is_read_behind_the_norm_behind_attention(
    family, backend, load_tiny, model_folders
):
    edit, plain = fitted(load_tiny(family, backend), site="z"), Plain(model_folders[family])
    found = sl.direction_contributions(load_tiny(family, backend), edit, contrasts(2), basis="sides", describe=3)
    for (layer, head, side, index), description in found.descriptions.items():
        factor = getattr(edit.subspaces[layer], {"+": "keep", "-": "drop"}[side])[head, :, index].float()
        z = torch.zeros(HEADS, len(factor))
        z[head] = factor if description.displacement > 0 else -factor
        with torch.no_grad():
            # Of the norms only the gains matter: a scale changes no order of tokens.
            written = plain.norm_behind("attention", layer)(plain.output(layer)(z.flatten()))
            logits = plain.model.lm_head(plain.model.model.norm(written))
        # The first four tokens stand in no text.
        assert description.raises[0][0] == WORDS[int(logits[4:].argmax())]


@pytest.mark.model
def test_steering_has_no_singular_directions(model):
    steering = sl.mean_difference(sl.capture(model, demonstrations(), progress=False))
    with pytest.raises(sl.InputError, match="only a spectral edit has singular directions, got MeanDifference"):
        sl.direction_contributions(model, steering, contrasts())
