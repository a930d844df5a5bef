import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_subspaces import subspaces
from tiny import N_LAYERS, contrasts, demonstrations, fitted

import sea_lens as sl
from sea_lens.spectral.arithmetic import COMBINES, edit_activation
from sea_lens.spectral.direction_terms import direction_terms
from sea_lens.spectral.features import FEATURE_MAPS


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


@pytest.mark.model
@pytest.mark.parametrize("options", [{}, {"centre": True}, {"feature": "squared_exponential"}, {"site": "z"}])
def test_directions_add_up_to_their_layers(options, model):
    edit, items = fitted(model, **options), contrasts()
    # Through a clamped feature map the effect jumps and no number of nodes closes: compare at the first four.
    tolerance = 1e9 if "feature" in options else 1e-3
    found = sl.direction_contributions(model, edit, items, strength=0.8, describe=0, tolerance=tolerance)
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
    found = sl.direction_contributions(model, edit, contrasts(), demonstrations=demos, describe=3)
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
def test_steering_has_no_singular_directions(model):
    steering = sl.mean_difference(sl.capture(model, demonstrations(), progress=False))
    with pytest.raises(sl.InputError, match="only a spectral edit has singular directions, got MeanDifference"):
        sl.direction_contributions(model, steering, contrasts())
