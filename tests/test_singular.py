"""Leading singular vectors without the rest, against the full decomposition in float64 (docs/method.md 2.6)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sea_lens as sl
from sea_lens.spectral import singular
from sea_lens.spectral.products import Matrix, Rows, ThinProduct
from sea_lens.spectral.ranks import KEEP, Size

N, D = 300, 400


def activations(decay, n=N, d=D, seed=0, mean=0.0):
    """Neutral and positive activations whose scales along random axes fall as j^-decay, float32 values in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scales = torch.arange(1, d + 1, dtype=torch.float64) ** -decay
    axes = torch.linalg.qr(normal(d, d)).Q
    shared = normal(n, d) * scales + mean * scales
    return [((shared + 0.5 * normal(n, d) * scales) @ axes.T).float().double() for _ in range(2)]


def products(h, plus):
    omega = (h.T @ plus / len(h))[None]
    return {"thin": ThinProduct(Rows.of(h[:, None]), Rows.of(plus[:, None])), "matrix": Matrix.of(omega)}, omega[0]


def to_size(**size):
    return lambda spectrum: Size.of(**size).ranks(spectrum, KEEP, [0])


@pytest.mark.parametrize("form", ["thin", "matrix"])
@pytest.mark.parametrize("decay", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("size", [{"energy": 0.9}, {"energy": 0.998}, {"rank": 1}, {"rank": 9}])
def test_the_leading_subspace_is_that_of_the_full_decomposition(form, decay, size):
    found, omega = products(*activations(decay, mean=2.0))
    left, spectrum = singular.leading(found[form], to_size(**size)) or pytest.fail("the leading part was not found")
    full, values, _ = torch.linalg.svd(omega)
    rank = int(to_size(**size)(singular.Spectrum.whole(values[None])))
    assert left.shape == (1, D, rank) == (1, D, int(to_size(**size)(spectrum)))
    torch.testing.assert_close(left[0] @ left[0].T, full[:, :rank] @ full[:, :rank].T, rtol=0, atol=1e-8)
    torch.testing.assert_close(spectrum.values[0] * found[form].scale, values[:rank], rtol=1e-10, atol=0)
    torch.testing.assert_close(spectrum.energy[0], values.square().sum() / values[0] ** 2, rtol=1e-10, atol=0)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 12), d=st.integers(1, 12), units=st.integers(1, 3), seed=st.integers(0, 99))
def test_thin_factors_and_the_matrix_have_one_decomposition(n, d, units, seed):
    generator = torch.Generator().manual_seed(seed)
    h, plus = torch.randn(2, n, units, d, generator=generator, dtype=torch.float64)
    thin, omega = ThinProduct(Rows.of(h), Rows.of(plus)), torch.einsum("nui,nuj->uij", h, plus) / n
    matrix = Matrix.of(omega)
    for product in (thin, matrix):
        left, values = product.decomposition()
        square = (left * (values * product.scale[:, None])[:, None].square()) @ left.mT
        torch.testing.assert_close(square, omega @ omega.mT, rtol=0, atol=1e-10)
        torch.testing.assert_close(product.energy * product.scale**2, omega.square().sum((1, 2)), rtol=1e-9, atol=0)
        x = torch.randn(units, d, 2, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(product.apply(x) * product.scale[:, None, None], omega @ x)
        torch.testing.assert_close(product.apply_transposed(x) * product.scale[:, None, None], omega.mT @ x)


@pytest.mark.parametrize("rank", [17, 40])
@pytest.mark.parametrize("times", [17, 40, 60])
def test_a_value_that_is_there_more_often_than_a_block_is_wide_is_found_as_often(rank, times):
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(2, 300, 300, generator=generator, dtype=torch.float64)).Q
    values = torch.cat([torch.ones(times), 0.5 * 0.5 ** torch.arange(300.0 - times)]).double()
    product = Matrix.of(((axes[0] * values) @ axes[1].T)[None])
    found = singular.leading(product, to_size(rank=rank))
    # Where the rank cuts through equal values there is no one subspace, and the full decomposition is to say which.
    if rank < times:
        assert found is None
    elif found is not None:
        beyond = rank - times
        expected = axes[0][:, :times] @ axes[0][:, :times].T
        expected += axes[0][:, times : times + beyond] @ axes[0][:, times : times + beyond].T
        torch.testing.assert_close(found[0][0] @ found[0][0].T, expected, rtol=0, atol=1e-6)
    left, _ = product.decomposition()
    torch.testing.assert_close(left[0].T @ left[0], torch.eye(300).double(), rtol=0, atol=1e-10)


def test_a_flat_spectrum_is_left_to_the_full_decomposition():
    h, plus = activations(0.0)
    found, omega = products(h, plus)
    assert singular.leading(found["thin"], to_size(energy=0.998)) is None
    edit = sl.fit_activations(h[:, None], plus[:, None], h[:, None])
    values = torch.linalg.svdvals(omega).square()
    shares = values.cumsum(0) / values.sum()
    assert edit.ranks[0][0] == int((shares >= 0.998).int().argmax()) + 1 > N // 2


def test_equal_singular_values_at_the_cut_are_left_to_the_full_decomposition():
    """No residual is small beside a gap of zero: which of the directions are taken is anybody's choice."""
    axes = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    values = torch.cat([torch.tensor([3.0, 2.0, 2.0, 1.0]), torch.full((D - 4,), 1e-3)]).double()
    product = Matrix.of(((axes * values) @ axes.T)[None])
    assert singular.leading(product, to_size(rank=2)) is None
    assert singular.leading(product, to_size(rank=3)) is not None


def test_equal_demonstrations_leave_the_leading_directions_exact():
    """Four texts, each a hundred times: the Gram matrix of the neutral activations is singular."""
    h, plus = (x[:4].repeat(75, 1) for x in activations(1.0))
    found, omega = products(h, plus)
    left, _ = singular.leading(found["thin"], to_size(rank=2)) or pytest.fail("the leading part was not found")
    full = torch.linalg.svd(omega).U[:, :2]
    torch.testing.assert_close(left[0] @ left[0].T, full @ full.T, rtol=0, atol=1e-8)


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("n", [300, 500])
@pytest.mark.parametrize(
    "options", [{}, {"energy": (0.9, 0.99)}, {"rank": (5, 7)}, {"spectrum_power": 1.0, "energy": 0.6}]
)
def test_a_fit_is_that_of_the_covariances_whole(centre, n, options):
    h, plus = activations(1.0, n=n, mean=1.0)
    minus = activations(0.8, n=n, seed=1)[1]
    edit = sl.fit_activations(*(x[:, None] for x in (h, plus, minus)), centre=centre, **options)
    if centre:
        h, plus, minus = (x - x.mean(0) for x in (h, plus, minus))
    size = Size.of(**options)
    for side, other in enumerate((plus, minus)):
        full, values, _ = torch.linalg.svd(h.T @ other / n)
        rank = int(size.ranks(singular.Spectrum.whole(values[None]), side, [0]))
        assert edit.ranks[0][side] == rank
        wanted = full[:, :rank] @ full[:, :rank].T
        found = edit.projections(0)[side]
        torch.testing.assert_close(found if side == 0 else torch.eye(D) - found, wanted, rtol=0, atol=1e-8)


def test_all_singular_values_are_computed_where_they_are_asked_for():
    h, plus = (x[:, None] for x in activations(1.0))
    covariance = sl.CrossCovariance.empty((0,), 1, D, site="mlp_out", feature=sl.FEATURE_MAPS["identity"])
    covariance = covariance.updated(*(x[:, :, None] for x in (h, plus, plus)))
    leading, whole = sl.fit(covariance), sl.fit(covariance, whole_spectrum=True)
    assert leading.ranks == whole.ranks
    few, all_of_them = leading.subspaces[0].spectra[0], whole.subspaces[0].spectra[0]
    assert few.values.shape[1] == leading.ranks[0][0] < all_of_them.values.shape[1] == N
    torch.testing.assert_close(few.energy, all_of_them.energy, rtol=1e-10, atol=0)
    torch.testing.assert_close(few.left(2), all_of_them.left(2)[:, : few.values.shape[1]], rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-120, 1.0, 1e120])
def test_the_size_of_activations_changes_no_direction(scale):
    h, plus = activations(1.0)
    edits = [sl.fit_activations(*(factor * x[:, None] for x in (h, plus, plus))) for factor in (1.0, scale)]
    assert edits[0].ranks == edits[1].ranks
    torch.testing.assert_close(edits[0].projections(0)[0], edits[1].projections(0)[0], rtol=0, atol=1e-10)
    first = edits[1].subspaces[0].keep_values[0, 0].item()
    assert math.isclose(first, scale**2 * edits[0].subspaces[0].keep_values[0, 0].item(), rel_tol=1e-10)


@pytest.mark.parametrize("n", [3, 300])
def test_what_cancels_to_nothing_is_no_overflow(n):
    """HᵀK is zero up to rounding though neither H nor K is: its energy must not come out below zero, or as NaN."""
    generator = torch.Generator().manual_seed(0)
    for d in (n + 2, 2 * n):
        h, other = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
        columns = torch.linalg.qr(h[:, : n - 1]).Q
        h, other = columns @ (columns.T @ h), other - columns @ (columns.T @ other)
        product = ThinProduct(Rows.of(h[:, None]), Rows.of(other[:, None]))
        assert product.is_finite
        assert (product.energy >= 0).all()
        assert singular.leading(product, to_size(energy=0.998)) is None
