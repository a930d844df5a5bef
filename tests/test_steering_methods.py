"""Directional ablation, generalised eigenvectors and angular steering: what their formulas promise."""

import math

import numpy as np
import pytest
import torch
from tiny import contrasts, demonstrations, tokens

import sea_lens as sl
from sea_lens.methods.covariance_ratios import solve
from sea_lens.models.lens import Lens

LAYERS, HEADS, WIDTH = 3, 2, 8


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def statistics(site="mlp_out", n=40, change=None, texts=None):
    """Statistics of random activations that are correlated as those of one text are."""
    units = HEADS if site == "z" else 1
    base = random(n, LAYERS, units, WIDTH, seed=9)
    mixed = [base + random(n, LAYERS, units, WIDTH, seed=i) + i for i in range(3)] if texts is None else texts
    if change is not None:
        mixed = [x @ change for x in mixed]
    empty = sl.CrossCovariance.empty(tuple(range(LAYERS)), units, WIDTH, site=site, feature=sl.FEATURE_MAPS["identity"])
    neutral, positive, negative = mixed
    return empty.updated(neutral, positive, negative)


def rotation(seed=3):
    return torch.linalg.qr(random(WIDTH, WIDTH, seed=seed))[0]


FITS = {
    "ablation": lambda c: sl.directional_ablation(c),
    "generalised eigenvectors": lambda c: sl.generalised_eigen(c, rank=2),
    "angular steering": lambda c: sl.angular_steering(c, 130, plane="means"),
}
CASES = [(name, combine) for name, fit in FITS.items() for combine in fit(statistics()).combines]


def activations(site="mlp_out", seed=5):
    return random(4, 3, HEADS, WIDTH, seed=seed) if site == "z" else random(4, 3, WIDTH, seed=seed)


def test_ablation_takes_the_direction_out_once_and_for_all():
    covariance = statistics()
    edit, x = sl.directional_ablation(covariance), activations()
    _, positive, negative = covariance.means(1)
    r = torch.nn.functional.normalize(positive - negative, dim=-1)[0]
    once = edit(x, 1)
    torch.testing.assert_close(once, x - (x @ r)[..., None] * r)
    torch.testing.assert_close(once @ r, torch.zeros(4, 3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(edit(once, 1), once)
    assert (once.norm(dim=-1) <= x.norm(dim=-1) + 1e-12).all()


@pytest.mark.parametrize("site", ["mlp_out", "z"])
def test_affine_ablation_gives_both_classes_the_wanted_mean(site):
    covariance = statistics(site)
    edit = sl.directional_ablation(covariance)
    for layer in edit.layers:
        _, positive, negative = (x if site == "z" else x[0] for x in covariance.means(layer))
        torch.testing.assert_close(edit(positive, layer, combine="affine"), positive)
        torch.testing.assert_close(edit(negative, layer, combine="affine"), positive)


def test_one_layers_direction_serves_all_layers():
    covariance = statistics()
    own, one = sl.directional_ablation(covariance), sl.directional_ablation(covariance, layer=2)
    plane = sl.angular_steering(covariance, layer=2)
    for layer in own.layers:
        assert torch.equal(one.directions[layer].direction, own.directions[2].direction)
        assert torch.equal(plane.planes[layer].second, plane.planes[2].second)
        # What the component becomes is for the layer's own activations to say.
        positive = covariance.means(layer)[1][0]
        torch.testing.assert_close(one(positive, layer, combine="affine"), positive)


def test_what_has_no_direction_is_refused():
    same = random(9, LAYERS, 1, WIDTH)
    equal = statistics(texts=[random(9, LAYERS, 1, WIDTH, seed=1), same, same])
    for fit in FITS.values():
        with pytest.raises(sl.ActivationError, match="layer 0"):
            fit(equal)
        with pytest.raises(sl.ActivationError, match="no demonstrations"):
            fit(sl.CrossCovariance.empty((0, 1), 1, WIDTH, site="mlp_out", feature=sl.FEATURE_MAPS["identity"]))
        with pytest.raises(sl.InputError, match="needs feature 'identity', got 'tanh'"):
            fit(statistics(n=5).with_feature("tanh"))
    for fit in (sl.directional_ablation, sl.angular_steering):
        with pytest.raises(sl.InputError, match="layer 7 was not captured"):
            fit(statistics(), layer=7)
        with pytest.raises(sl.InputError, match="no direction in common"):
            fit(statistics("z"), layer=1)
    # Layers whose directions are one but for rounding have no principal component.
    alike = [random(9, 1, 1, WIDTH, seed=i).repeat(1, LAYERS, 1, 1) for i in range(3)]
    alike[2] = alike[2] * (1 + 1e-14 * random(9, LAYERS, 1, 1, seed=4))
    with pytest.raises(sl.ActivationError, match="no second axis of the plane apart from the first"):
        sl.angular_steering(statistics(texts=alike))
    with pytest.raises(sl.InputError, match="unknown plane 'pca'"):
        sl.angular_steering(statistics(), plane="pca")
    with pytest.raises(sl.InputError, match="expected plane='means'"):
        sl.angular_steering(statistics("z"))
    with pytest.raises(sl.InputError, match="angle"):
        sl.angular_steering(statistics(), float("nan"))
    with pytest.raises(sl.InputError, match="rank 9: the activations are 8 wide"):
        sl.generalised_eigen(statistics(), rank=9)
    with pytest.raises(sl.InputError, match="shrinkage 1: expected a number below 1"):
        sl.generalised_eigen(statistics(), shrinkage=1)
    with pytest.raises(sl.ActivationError, match="layer 0: the negative side of the ratios is singular"):
        sl.generalised_eigen(statistics(n=5), rank=1, shrinkage=0)


def compared(covariance, layer, side, shrinkage=0.1):
    omega = covariance.omega(layer, centre=True)[side][0].numpy()
    squared = omega @ omega.T
    return (1 - shrinkage) * squared * WIDTH / np.trace(squared) + shrinkage * np.eye(WIDTH)


def test_ratios_are_those_of_whitening_by_hand_and_bound_every_ratio():
    covariance = statistics()
    edit = sl.generalised_eigen(covariance, rank=2)
    for layer in edit.layers:
        above, below = (compared(covariance, layer, side) for side in (0, 1))
        values, vectors = np.linalg.eigh(below)
        whitener = vectors @ np.diag(values**-0.5) @ vectors.T
        ratios, whitened = np.linalg.eigh(whitener @ above @ whitener)
        found = edit.eigenvectors[layer]
        np.testing.assert_allclose(found.ratios[0], ratios[:2], rtol=1e-8)
        np.testing.assert_allclose(found.opposite_ratios[0], ratios[::-1][:2], rtol=1e-8)
        expected = whitener @ whitened[:, :2]
        expected /= np.linalg.norm(expected, axis=0)
        np.testing.assert_allclose(np.abs((expected * found.filters[0].numpy()).sum(0)), 1, rtol=1e-8)
        drawn = random(WIDTH, 500).numpy()
        quotients = (drawn * (above @ drawn)).sum(0) / (drawn * (below @ drawn)).sum(0)
        assert ratios[0] <= quotients.min() <= quotients.max() <= ratios[-1]


def test_swapping_the_labels_inverts_the_ratios():
    texts = [random(40, LAYERS, 1, WIDTH, seed=9) + random(40, LAYERS, 1, WIDTH, seed=i) for i in range(3)]
    one = sl.generalised_eigen(statistics(texts=texts), rank=2)
    other = sl.generalised_eigen(statistics(texts=[texts[0], texts[2], texts[1]]), rank=2)
    for layer in one.layers:
        mine, theirs = one.eigenvectors[layer], other.eigenvectors[layer]
        torch.testing.assert_close(mine.ratios, 1 / theirs.opposite_ratios)
        torch.testing.assert_close(mine.filters, theirs.opposite)
        x = activations()
        torch.testing.assert_close(one(x, layer), other(x, layer, combine="reverse"))


def test_what_demonstrations_do_not_speak_of_has_ratio_one():
    with pytest.warns(sl.SeaLensWarning, match="of rank 8 only so many components have a ratio below 1"):
        edit = sl.generalised_eigen(statistics(n=5), rank=8)
    # Five deviations from their mean span four dimensions.
    for found in edit.eigenvectors.values():
        assert int((found.ratios < 1).sum() + (found.opposite_ratios > 1).sum()) == 4
        assert (found.filters[0, :, found.ratios[0] == 1] == 0).all()


def test_planted_ratios_are_found():
    n, change = 100_000, rotation()
    h = random(n, LAYERS, 1, WIDTH, seed=9)
    strong, weak = torch.ones(WIDTH, dtype=torch.float64), torch.ones(WIDTH, dtype=torch.float64)
    strong[2], weak[5] = 4, 4
    texts = [h, h * strong + random(*h.shape, seed=1), h * weak + random(*h.shape, seed=2)]
    edit = sl.generalised_eigen(statistics(texts=[x @ change for x in texts]), rank=1, shrinkage=0)
    for found in edit.eigenvectors.values():
        # Rows of the rotation are where the planted axes went.
        assert abs(float(found.filters[0, :, 0] @ change[5])) > 0.999
        assert abs(float(found.opposite[0, :, 0] @ change[2])) > 0.999
        assert float(found.ratios) == pytest.approx(1 / 16, rel=0.05)
        assert float(found.opposite_ratios) == pytest.approx(16, rel=0.05)


def test_dropping_takes_the_components_out_and_oblique_leaves_the_others():
    covariance = statistics()
    edit, x = sl.generalised_eigen(covariance, rank=2), activations()
    above, below = (torch.from_numpy(compared(covariance, 1, side)) for side in (0, 1))
    _, vectors = solve(above, below)
    centre = covariance.means(1)[0][0]
    torch.testing.assert_close(edit(centre, 1), centre)
    moved = {combine: edit(x, 1, combine=combine) - centre for combine in edit.combines}
    nothing = torch.zeros(4, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(moved["drop"] @ vectors[:, :2], nothing, atol=1e-9, rtol=0)
    torch.testing.assert_close(moved["reverse"] @ vectors[:, -2:], nothing, atol=1e-9, rtol=0)
    torch.testing.assert_close(moved["oblique"] @ vectors[:, :2], nothing, atol=1e-9, rtol=0)
    torch.testing.assert_close(moved["oblique"] @ vectors[:, 2:], (x - centre) @ vectors[:, 2:])
    # Of all that take the components out, the orthogonal projection moves least.
    assert ((moved["drop"] - x + centre).norm(dim=-1) <= (moved["oblique"] - x + centre).norm(dim=-1) + 1e-12).all()
    for combine in edit.combines:
        once = edit(x, 1, combine=combine)
        torch.testing.assert_close(edit(once, 1, combine=combine), once)


@pytest.mark.parametrize("angle", [0, 30, 90, 180, 275, -40, 720])
def test_rotation_keeps_the_norm_and_reaches_the_angle(angle):
    edit, x = sl.angular_steering(statistics(), angle), activations()
    plane = edit.planes[1]
    rotated = edit(x, 1)
    first, second = rotated @ plane.first[0], rotated @ plane.second[0]
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    found = torch.rad2deg(torch.atan2(second, first))
    turn = torch.deg2rad(found - angle)
    torch.testing.assert_close(torch.cos(turn), torch.ones_like(turn))
    outside = [
        y - (y @ plane.first[0])[..., None] * plane.first - (y @ plane.second[0])[..., None] * plane.second
        for y in (x, rotated)
    ]
    torch.testing.assert_close(*outside)
    torch.testing.assert_close(edit(rotated, 1), rotated)


def test_adaptive_rotation_leaves_alone_what_has_nothing_unwanted():
    edit, x = sl.angular_steering(statistics(), 150), activations()
    unwanted = x @ edit.planes[1].first[0] > 0
    assert unwanted.any()
    assert not unwanted.all()
    adaptive = edit(x, 1, combine="adaptive")
    assert torch.equal(adaptive[~unwanted], x[~unwanted])
    torch.testing.assert_close(adaptive[unwanted], edit(x, 1)[unwanted])


def test_turns_add_up():
    edit, x = sl.angular_steering(statistics(), 40), activations()
    turned = edit.with_angle(75)(edit(x, 1, combine="turn"), 1, combine="turn")
    torch.testing.assert_close(turned, edit.with_angle(115)(x, 1, combine="turn"))
    torch.testing.assert_close(edit.with_angle(75)(edit(x, 1), 1, combine="turn"), edit.with_angle(115)(x, 1))
    torch.testing.assert_close(edit.with_angle(360)(x, 1, combine="turn"), x)


def test_the_planes_are_those_of_the_directions():
    covariance = statistics()
    means = [covariance.means(layer) for layer in covariance.layers]
    firsts = np.stack([((negative - positive) / (negative - positive).norm())[0] for _, positive, negative in means])
    component = np.linalg.svd(firsts - firsts.mean(0))[2][0]
    component *= np.sign((firsts - firsts.mean(0))[-1] @ component)
    edit, held = sl.angular_steering(covariance), sl.angular_steering(covariance, plane="means")
    for layer, first in enumerate(firsts):
        np.testing.assert_allclose(edit.planes[layer].first[0], first, atol=1e-12)
        second = component - (component @ first) * first
        np.testing.assert_allclose(edit.planes[layer].second[0], second / np.linalg.norm(second), atol=1e-9)
        axes = torch.cat([held.planes[layer].first, held.planes[layer].second])
        for mean in means[layer][1:]:
            torch.testing.assert_close(mean @ axes.T @ axes, mean)


@pytest.mark.parametrize(("name", "combine"), CASES)
@pytest.mark.parametrize("site", ["mlp_out", "z"])
def test_the_strength_goes_along_a_line_and_heads_are_on_their_own(name, combine, site):
    edit, x = FITS[name](statistics(site)), activations(site)
    whole = edit(x, 1, combine=combine)
    assert torch.equal(edit(x, 1, 0.0, combine), x)
    torch.testing.assert_close(edit(x, 1, 0.3, combine), x + 0.3 * (whole - x))
    strengths = random(*x.shape[:-1])
    torch.testing.assert_close(edit(x, 1, strengths, combine), x + strengths[..., None] * (whole - x))
    if site == "z":
        other = x.clone()
        other[..., 1, :] = 7.0
        assert torch.equal(edit(other, 1, combine=combine)[..., 0, :], whole[..., 0, :])


@pytest.mark.parametrize(("name", "combine"), CASES)
def test_fitting_commutes_with_rotating_the_space(name, combine):
    change, x = rotation(), activations()
    there = FITS[name](statistics(change=change))(x @ change, 1, combine=combine)
    torch.testing.assert_close(there, FITS[name](statistics())(x, 1, combine=combine) @ change)
    plane = sl.angular_steering(statistics(change=change), 60)(x @ change, 1)
    torch.testing.assert_close(plane, sl.angular_steering(statistics(), 60)(x, 1) @ change)


@pytest.mark.parametrize(("name", "combine"), CASES)
def test_sums_give_the_edit_of_the_activations(name, combine, tmp_path):
    few, x = statistics(n=6), activations()
    sums = sl.CrossCovariance(few.layers, few.site, few.feature, few.statistics.sums(few.feature))
    for one in (few, sums):
        fit = {**FITS, "generalised eigenvectors": lambda c: sl.generalised_eigen(c, rank=1)}[name]
        torch.testing.assert_close(fit(one)(x, 1, combine=combine), fit(few)(x, 1, combine=combine))
    edit = FITS[name](statistics())
    edit.save(tmp_path / "edit")
    loaded = sl.load_edit(tmp_path / "edit")
    assert isinstance(loaded, (sl.DirectionalAblation, sl.GeneralisedEigen, sl.AngularSteering))
    assert type(loaded) is type(edit)
    assert torch.equal(loaded(x, 1, 1.5, combine), edit(x, 1, 1.5, combine))
    assert loaded.digest == edit.digest


@pytest.mark.parametrize(("name", "combine"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_finite_activation_is_sent_to_a_finite_one(name, combine, dtype):
    edit, largest = FITS[name](statistics()), torch.finfo(dtype).max
    ends = torch.stack([torch.full((WIDTH,), largest), torch.zeros(WIDTH), torch.full((WIDTH,), 1e-38)]).to(dtype)
    x = torch.cat([ends, -ends, random(3, WIDTH).to(dtype), (random(3, WIDTH).clamp(-1, 1) * largest).to(dtype)])
    for strength in (0.0, 1.0, -3.0, 1e300, torch.tensor(1e300, dtype=torch.float64)):
        kept, found = x.clone(), edit(x, 1, strength, combine)
        assert found.dtype == dtype
        assert torch.isfinite(found).all()
        assert torch.equal(x, kept)
    unknown = x.clone()
    unknown[0, 0] = math.nan
    found = edit(unknown, 1, combine=combine)
    assert torch.isfinite(found[1:]).all()
    if not (name == "angular steering" and combine == "adaptive"):
        assert found[0].isnan().any()
    near = random(5, WIDTH).to(dtype)
    torch.testing.assert_close(
        edit(near, 1, 1.0, combine).double(), edit(near.double(), 1, 1.0, combine), rtol=2e-2, atol=5e-2
    )


@pytest.mark.parametrize(("name", "combine"), CASES)
def test_slopes_equal_finite_differences_and_are_finite_at_zero(name, combine):
    edit, x = FITS[name](statistics()), activations().requires_grad_()
    strength = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y, a: edit(y, 1, a, combine), (x, strength))
    zero = torch.zeros(1, WIDTH, requires_grad=True)
    edit(zero, 1, combine=combine).sum().backward()
    assert zero.grad is not None
    assert torch.isfinite(zero.grad).all()
    module = edit.module(1, 1.5, combine)
    assert torch.equal(module(x), edit(x, 1, 1.5, combine))


def seen_at(lens, point, ids):
    seen = []
    with lens.hooks([(point, lambda x: seen.append(x.detach().clone()))]):
        lens.forward(ids, torch.ones_like(ids))
    return seen[0]


@pytest.mark.model
@pytest.mark.parametrize("site", ["resid_post", "z"])
def test_in_a_model_it_is_the_formula_and_is_measured_like_any_edit(site, model):
    covariance = sl.capture(model, demonstrations(), site=site, progress=False)
    lens, ids = Lens.of(model), tokens()
    fits = {**FITS, "generalised eigenvectors": lambda c: sl.generalised_eigen(c, rank=1)}
    for fit in fits.values():
        edit = fit(covariance)
        point = edit.at.point(lens, 1)
        for combine in edit.combines:
            before = seen_at(lens, point, ids)
            with edit.applied(model, layers=[1], combine=combine, strength=0.8):
                assert torch.equal(seen_at(lens, point, ids), edit(before, 1, 0.8, combine))
        effect = sl.effect(model, edit, contrasts(4)).effect
        found = sl.layer_contributions(model, edit, contrasts(4), "shapley")
        assert found.total == pytest.approx(effect, rel=2e-3, abs=1e-5)
        beside = sl.geometry(sl.fit(covariance, rank=2), edit)
        assert {pair.between for pair in beside.pairs} == {"edits"}
