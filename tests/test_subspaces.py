import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sea_lens.spectral.arithmetic import COMBINES, ThinProducts, edit_activation
from sea_lens.spectral.features import FEATURE_MAPS
from sea_lens.spectral.few_steps import edit_unseen
from sea_lens.spectral.products import Matrix
from sea_lens.spectral.ranks import KEEP, Size
from sea_lens.spectral.subspaces import Subspaces, leading_subspace, random_subspaces

KEEPING_NORM = [combine for combine in COMBINES if combine != "average"]
IDENTITY = FEATURE_MAPS["identity"]


@pytest.fixture(autouse=True, scope="module", params=[False, True], ids=["plain", "recorded"])
def recording(request):
    """Every property twice: without gradients a linear edit is computed in a way of its own."""
    with torch.set_grad_enabled(request.param):
        yield


def to_size(energy, spectrum_power=2):
    """Ranks from singular values, as `fit` chooses them for one side of a layer."""
    size = Size.of(energy, spectrum_power=spectrum_power)
    return lambda spectrum: size.ranks(spectrum, KEEP, ())


def subspaces(d, keep, drop, units=1, centre=False, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    omega = torch.randn(2, units, d, d, generator=generator, dtype=torch.float64)
    kept, dropped = (
        leading_subspace(Matrix.of(matrix), lambda spectrum, rank=rank: torch.full((units,), rank))
        for matrix, rank in zip(omega, (keep, drop), strict=True)
    )
    mean = torch.randn(units, d, generator=generator, dtype=torch.float64) if centre else None
    return Subspaces.of(kept, dropped, mean).to("cpu", dtype)


@st.composite
def cases(draw):
    """Subspaces of any ranks, activations of any size of number, any feature map, strength and way to combine."""
    d = draw(st.integers(1, 9))
    keep, drop = draw(st.integers(0, d)), draw(st.integers(0, d))
    centre = draw(st.booleans())
    x = draw(arrays("float64", (3, 1, d), elements=st.floats(-1e3, 1e3, width=32)))
    scale = 10.0 ** draw(st.integers(-6, 6))
    feature = FEATURE_MAPS[draw(st.sampled_from(sorted(FEATURE_MAPS)))]
    fitted = subspaces(d, keep, drop, centre=centre, seed=draw(st.integers(0, 99)))
    return torch.tensor(x) * scale, fitted, feature


@given(omega=arrays("float64", (2, 5, 5), elements=st.floats(-10, 10)), energy=st.floats(0.01, 1.0))
def test_the_rank_is_the_smallest_that_reaches_the_energy(omega, energy):
    matrix = torch.tensor(omega)
    assume((torch.linalg.svdvals(matrix)[:, 0] > 1e-6).all())
    _, ranks, spectrum = leading_subspace(Matrix.of(matrix), to_size(energy))
    for k, sigma in zip(ranks.tolist(), spectrum.values, strict=True):
        shares = sigma.square().cumsum(0) / sigma.square().sum()
        assert shares[k - 1] >= energy - 1e-12
        assert k == 1 or shares[k - 2] < energy + 1e-12


def test_the_spectrum_power_counts():
    omega = torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))[None]
    ranks = {p: leading_subspace(Matrix.of(omega), to_size(0.9, spectrum_power=p)).ranks.item() for p in (1, 2)}
    assert ranks == {1: 3, 2: 2}  # 6/7 < 0.9 <= 1, and 20/21 >= 0.9


@given(d=st.integers(1, 8), data=st.data())
def test_projections_are_orthogonal_projections_of_their_ranks(d, data):
    keep, drop = data.draw(st.integers(0, d)), data.draw(st.integers(0, d))
    positive, negative = (p[0] for p in subspaces(d, keep, drop).projections())
    for projection, rank in ((positive, keep), (negative, d - drop)):
        torch.testing.assert_close(projection @ projection, projection, atol=1e-12, rtol=0)
        torch.testing.assert_close(projection, projection.T, atol=1e-12, rtol=0)
        assert round(projection.trace().item()) == rank


def test_ranks_may_differ_between_units():
    omega = torch.zeros(2, 4, 4, dtype=torch.float64)
    omega[0, 0, 0] = 1.0
    omega[1] = torch.eye(4)
    factor, ranks, _ = leading_subspace(Matrix.of(omega), to_size(0.99))
    assert ranks.tolist() == [1, 4]
    assert factor[0, :, 1:].abs().max() == 0


@given(case=cases(), strength=st.floats(-3, 3), combine=st.sampled_from(COMBINES))
def test_no_finite_input_gives_nan(case, strength, combine):
    x, fitted, feature = case
    assert torch.isfinite(edit_activation(x, fitted, feature, strength=strength, combine=combine)).all()


@given(case=cases(), combine=st.sampled_from(KEEPING_NORM))
def test_the_norm_is_kept(case, combine):
    x, fitted, feature = case
    edited = edit_activation(x, fitted, feature, combine=combine)
    torch.testing.assert_close(edited.norm(dim=-1), x.norm(dim=-1), rtol=1e-9, atol=1e-300)


@given(case=cases(), strength=st.floats(-3, 3), combine=st.sampled_from(KEEPING_NORM))
def test_zero_stays_zero(case, strength, combine):
    x, fitted, feature = case
    zeros = torch.zeros_like(x)
    assert torch.equal(edit_activation(zeros, fitted, feature, strength=strength, combine=combine), zeros)


@given(case=cases(), combine=st.sampled_from(COMBINES))
def test_rows_do_not_touch_each_other(case, combine):
    x, fitted, feature = case
    together = edit_activation(x, fitted, feature, combine=combine)
    for row in range(len(x)):
        alone = edit_activation(x[row : row + 1], fitted, feature, combine=combine)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-9, atol=1e-9 * x[row].abs().max().item())


@given(case=cases(), combine=st.sampled_from(COMBINES))
def test_strength_zero_changes_nothing_and_strength_is_linear(case, combine):
    x, fitted, feature = case
    assert torch.equal(edit_activation(x, fitted, feature, strength=0.0, combine=combine), x)
    whole = edit_activation(x, fitted, feature, combine=combine)
    half = edit_activation(x, fitted, feature, strength=0.5, combine=combine)
    torch.testing.assert_close(
        half, (x + whole) / 2, rtol=1e-9, atol=1e-9 * (x.abs().max().item() + whole.abs().max().item())
    )


@given(d=st.integers(1, 8), centre=st.booleans(), name=st.sampled_from(sorted(FEATURE_MAPS)), seed=st.integers(0, 99))
def test_keeping_everything_and_dropping_nothing_is_the_identity(d, centre, name, seed):
    # Within the range of every feature map.
    x = 2 * torch.rand(4, 1, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    edited = edit_activation(x, subspaces(d, d, 0, centre=centre, seed=seed), FEATURE_MAPS[name])
    torch.testing.assert_close(edited, x, rtol=1e-6, atol=1e-6)


def test_the_linear_edit_is_the_formula():
    fitted, x = subspaces(6, 2, 3), torch.randn(5, 1, 6, dtype=torch.float64)
    positive, negative = (p[0] for p in fitted.projections())
    y = x[:, 0] @ positive + x[:, 0] @ negative
    expected = y * x[:, 0].norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(edit_activation(x, fitted, IDENTITY)[:, 0], expected)
    torch.testing.assert_close(edit_activation(x, fitted, IDENTITY, combine="average")[:, 0], y / 2)
    for combine, term in (("positive_only", x[:, 0] @ positive), ("negative_only", x[:, 0] @ negative)):
        rescaled = term * x[:, 0].norm(dim=-1, keepdim=True) / term.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(edit_activation(x, fitted, IDENTITY, combine=combine)[:, 0], rescaled)
    swapped = x[:, 0] @ (torch.eye(6, dtype=torch.float64) - negative) + x[:, 0] @ (
        torch.eye(6, dtype=torch.float64) - positive
    )
    rescaled = swapped * x[:, 0].norm(dim=-1, keepdim=True) / swapped.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(edit_activation(x, fitted, IDENTITY, combine="reverse")[:, 0], rescaled)


def test_the_centred_edit_is_affine_about_the_mean():
    fitted, x = subspaces(6, 2, 3, centre=True), torch.randn(5, 1, 6, dtype=torch.float64)
    assert fitted.centre is not None
    positive, negative = (p[0] for p in fitted.projections())
    mean = fitted.centre[0]
    y = 2 * mean + (x[:, 0] - mean) @ (positive + negative)
    torch.testing.assert_close(edit_activation(x, fitted, IDENTITY, combine="average")[:, 0], y / 2)


@pytest.mark.parametrize("name", sorted(FEATURE_MAPS))
def test_a_feature_map_is_applied_before_and_undone_after(name):
    feature, fitted, x = FEATURE_MAPS[name], subspaces(6, 2, 3), torch.randn(5, 1, 6, dtype=torch.float64)
    positive, negative = (p[0] for p in fitted.projections())
    mapped = feature.forward(x)
    y = feature.invert(mapped @ positive, x) + feature.invert(mapped @ negative, x)
    expected = y * x.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(edit_activation(x, fitted, feature), expected)


def test_what_is_projected_away_entirely_stays_as_it_is():
    fitted = subspaces(5, 0, 5)
    x = torch.randn(4, 1, 5, dtype=torch.float64)
    assert torch.equal(edit_activation(x, fitted, IDENTITY), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(FEATURE_MAPS))
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("centre", [False, True])
def test_the_ends_of_the_number_range_do_no_harm(dtype, name, combine, centre):
    info = torch.finfo(dtype)
    x = torch.tensor(
        [[info.max] * 4, [info.max, -info.max, 0, 1], [info.tiny] * 4, [info.smallest_normal, 0, 0, 0], [5e-40] * 4],
        dtype=dtype,
    )[:, None]
    fitted = subspaces(4, 2, 1, centre=centre, dtype=dtype)
    for strength in (-2.0, 0.0, 1.0, 3.0):
        edited = edit_activation(x, fitted, FEATURE_MAPS[name], strength=strength, combine=combine)
        assert torch.isfinite(edited).all()


@pytest.mark.parametrize("combine", [combine for combine in COMBINES if combine != "average"])
@pytest.mark.parametrize("strength", [-2.0, 0.0, 0.7, 1.0, 3.0, 2.0**30])
def test_an_edit_that_looks_at_no_number_is_the_edit(combine, strength):
    """What is done on a CUDA device, where a number that is looked at has to be waited for; any device can do it."""
    fitted = subspaces(8, 3, 2, dtype=torch.float32)
    products = ThinProducts.of(fitted, combine)
    generator = torch.Generator().manual_seed(1)
    sizes = torch.tensor([1e-20, 1e-3, 1.0, 1e3, 1e30, 3e38 / 8])
    usual = torch.randn(6, 50, 8, generator=generator) * sizes[:, None, None]
    usual = torch.cat([usual.flatten(0, 1), torch.zeros(1, 8), fitted.drop[0].T[:2], fitted.keep[0].T[:2]])
    expected = edit_activation(usual[:, None], fitted, IDENTITY, strength=strength, combine=combine)[:, 0]
    with torch.no_grad():
        found = edit_unseen(usual, products, strength)
    scale = expected.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)
    largest = torch.finfo(torch.float32).max
    ends = torch.tensor([[largest] * 8, [largest, -largest] * 4, [1e-45] * 8, [largest, *([0.0] * 7)]])
    assert torch.isfinite(edit_unseen(ends, products, strength)).all()


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("name", sorted(FEATURE_MAPS))
@torch.enable_grad()
def test_gradients_equal_finite_differences(combine, centre, name):
    fitted = subspaces(5, 2, 2, centre=centre)
    x = (0.3 + torch.rand(2, 1, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).requires_grad_()
    strength = torch.tensor([[0.7], [1.3]], dtype=torch.float64, requires_grad=True)
    # exp(-x²/2) of a projection may leave the range, where the clamp has a corner; elsewhere everything is smooth.
    torch.autograd.gradcheck(
        lambda x, s: edit_activation(x, fitted, FEATURE_MAPS[name], strength=s, combine=combine), (x, strength)
    )


@torch.enable_grad()
def test_gradients_at_zero_are_finite():
    x = torch.zeros(2, 1, 5, dtype=torch.float64, requires_grad=True)
    edit_activation(x, subspaces(5, 2, 2), IDENTITY).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_random_subspaces_have_the_same_ranks_and_are_orthonormal():
    omega = torch.eye(6, dtype=torch.float64).expand(2, 6, 6).clone()
    omega[1, 2:] = 0
    side = leading_subspace(Matrix.of(omega), to_size(1.0))
    fitted, ranks = Subspaces.of(side, side), side.ranks
    drawn = random_subspaces(fitted, torch.Generator().manual_seed(0))
    for unit, rank in enumerate(ranks.tolist()):
        gram = drawn.keep[unit].T @ drawn.keep[unit]
        expected = torch.diag(torch.tensor([1.0] * rank + [0.0] * (6 - rank), dtype=torch.float64))
        torch.testing.assert_close(gram, expected, atol=1e-12, rtol=0)
    again = random_subspaces(fitted, torch.Generator().manual_seed(0))
    other = random_subspaces(fitted, torch.Generator().manual_seed(1))
    assert torch.equal(drawn.keep, again.keep)
    assert not torch.allclose(drawn.keep, other.keep)


@settings(max_examples=50)
@given(
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    name=st.sampled_from(sorted(FEATURE_MAPS)),
    combine=st.sampled_from(COMBINES),
)
def test_an_edit_called_in_any_dtype_is_finite_keeps_the_norm_and_does_not_write_in_place(data, dtype, name, combine):
    import sea_lens as sl

    d = 6
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    neutral, positive, negative = (torch.randn(20, 1, d, generator=generator) for _ in range(3))
    edit = sl.fit_activations(neutral, positive, negative, feature=name, rank=(data.draw(st.integers(0, d)), 2))
    largest = torch.finfo(dtype).max
    x = torch.tensor(data.draw(arrays("float64", (2, 3, d), elements=st.floats(-largest, largest)))).to(dtype)
    assume(torch.isfinite(x).all())
    before = x.clone()
    edited = edit(x, 0, combine=combine)
    assert edited.dtype == dtype
    assert edited.shape == x.shape
    assert torch.isfinite(edited).all()
    assert torch.equal(x, before)
    lengths = x.double().norm(dim=-1)
    # Where no entry can saturate, the length is kept as well as the dtype can hold it.
    safe = (lengths < largest) & (lengths > 1e3 * torch.finfo(dtype).tiny)
    if combine != "average":
        tolerance = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(edited.double().norm(dim=-1)[safe], lengths[safe], rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("strength", [1.0, -0.3, 2.5, "for each"])
@pytest.mark.parametrize("size", [1.0, 1e-12, 1e12, "all"])
def test_an_edit_is_the_same_to_the_last_bit_with_and_without_gradients(dtype, units, combine, strength, size):
    generator = torch.Generator().manual_seed(5)
    fitted = subspaces(16, 5, 3, units=units, dtype=dtype)
    x = torch.randn(6, 7, units, 16, generator=generator, dtype=dtype)
    if size == "all":
        # Beside each other numbers near both ends of the dtype, a zero, and one that the edit projects away.
        limits = torch.finfo(dtype)
        x = x * torch.tensor([1.0, limits.tiny, limits.max / 64, 0.0, 1e-20, 1e20], dtype=dtype)[:, None, None, None]
        x[0, 0] = fitted.drop[..., 0] - (fitted.keep @ (fitted.keep.mT @ fitted.drop[..., :1]))[..., 0]
    else:
        x = x * size
    if strength == "for each":
        strength = torch.randn(7, units, generator=generator, dtype=dtype)
    found = []
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            found.append(edit_activation(x, fitted, IDENTITY, strength=strength, combine=combine))
    # Numbers below the smallest normal one have no last bit of their own.
    subnormal = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    torch.testing.assert_close(*found, rtol=0, atol=16 * subnormal)
    assert torch.isfinite(found[0]).all()


@pytest.mark.parametrize("strength", [1e39, -1e300])
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30])
def test_a_strength_beyond_the_dtype_saturates(strength, combine, size):
    fitted = subspaces(6, 2, 2, dtype=torch.float32)
    x = size * torch.randn(4, 1, 6, generator=torch.Generator().manual_seed(0))
    for alpha in (strength, torch.full((4, 1), strength, dtype=torch.float64)):
        assert torch.isfinite(edit_activation(x, fitted, IDENTITY, strength=alpha, combine=combine)).all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", ["identity", "tanh"])
def test_an_edit_can_be_mapped_and_pushed_forward(name):
    fitted, feature = subspaces(6, 2, 2), FEATURE_MAPS[name]
    x = torch.randn(4, 1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = edit_activation(x, fitted, feature)
    mapped = torch.func.vmap(lambda row: edit_activation(row, fitted, feature))(x)
    torch.testing.assert_close(mapped, whole)
    tangent = torch.randn(4, 1, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pushed = torch.func.jvp(lambda one: edit_activation(one, fitted, feature), (x,), (tangent,))[1]
    step = 1e-6
    ends = (edit_activation(x + sign * step * tangent, fitted, feature) for sign in (1, -1))
    torch.testing.assert_close(pushed, (next(ends) - next(ends)) / (2 * step), rtol=1e-4, atol=1e-6)
