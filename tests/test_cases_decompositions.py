"""Matrices that decompositions find hard: a right result, or one clear error."""

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sea_lens as sl
from sea_lens.methods.concept_erasure import _eraser
from sea_lens.spectral.layer_statistics import Three
from sea_lens.spectral.products import Matrix, Rows, ThinProduct, left_and_values
from sea_lens.spectral.signatures import signature
from sea_lens.spectral.singular import leading


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n: int) -> torch.Tensor:
    return torch.linalg.qr(normal(n, n)).Q


HARD = {
    "one value, repeated": lambda m, n: orthogonal(max(m, n))[:m, :n],
    "two values, repeated": lambda m, n: orthogonal(max(m, n))[:m, :n] * (1 + torch.arange(n) % 2),
    "rows repeated": lambda m, n: normal(1 + m // 20, n).repeat(21, 1)[:m],
    "columns repeated": lambda m, n: normal(m, 1 + n // 20).repeat(1, 21)[:, :n],
    "of rank one": lambda m, n: normal(m, 1) @ normal(1, n, seed=1),
    "next to nothing": lambda m, n: 1e-160 * normal(m, n),
    "large": lambda m, n: 1e150 * normal(m, n),
    "entries of all sizes": lambda m, n: 10.0 ** (12 * normal(m, n).clamp(-3, 3)),
    "one entry": lambda m, n: torch.zeros(m, n, dtype=torch.float64).index_fill_(0, torch.tensor([0]), 1.0),
    "zero": lambda m, n: torch.zeros(m, n, dtype=torch.float64),
}


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(sorted(HARD)), m=st.integers(1, 90), n=st.integers(1, 90))
def test_left_singular_vectors_and_values_of_hard_matrices_are_right(kind, m, n):
    matrix = HARD[kind](m, n)[None]
    left, values = left_and_values(matrix)
    k, size = min(m, n), matrix.abs().max().clamp(min=1e-300)
    assert left.shape == (1, m, k)
    assert (values.diff() <= 0).all()
    torch.testing.assert_close(left.mT @ left, torch.eye(k, dtype=torch.float64)[None], rtol=0, atol=1e-10)
    # Uᵀ M has the singular values as the lengths of its rows, and these are orthogonal to each other.
    rows = left.mT @ (matrix / size)
    squares = torch.diag_embed((values / size).square())
    torch.testing.assert_close(rows @ rows.mT, squares, rtol=0, atol=1e-9 * squares.max().clamp(min=1).item())


def test_what_has_no_singular_values_is_refused_with_its_size():
    with pytest.raises(sl.ActivationError, match=r"no singular values of a matrix of 4 × 6 .* largest entry is nan"):
        left_and_values(torch.full((1, 4, 6), float("nan"), dtype=torch.float64))


def test_where_a_krylov_space_cannot_be_decomposed_all_of_the_matrix_is():
    # Rows that are no numbers to begin with: what a decomposition of them gives is an error of LAPACK's.
    broken = Matrix.of(torch.full((1, 300, 300), float("nan"), dtype=torch.float64))
    assert leading(broken, lambda spectrum: torch.tensor([3])) is None


@pytest.mark.parametrize("kind", ["rows repeated", "one value, repeated", "of rank one"])
def test_hard_activations_have_one_decomposition_thin_and_whole(kind):
    h, plus = HARD[kind](40, 60), HARD["rows repeated"](40, 60)
    thin = ThinProduct(Rows.of(h[:, None]), Rows.of(plus[:, None]))
    whole = Matrix.of((h.T @ plus / 40)[None])
    (left, values), (_, expected) = thin.decomposition(), whole.decomposition()
    found, expected = values[0] * thin.scale, expected[0, :40] * whole.scale
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * expected[0].item())
    rank = int((found > 1e-9 * found[0]).sum())
    inside = left[0, :, :rank] @ left[0, :, :rank].T @ (h.T @ plus)
    torch.testing.assert_close(inside, h.T @ plus, rtol=0, atol=1e-9 * inside.abs().max().item())


def test_the_signature_of_means_that_are_one_another_is_their_length():
    mean = normal(2, 8)
    found, variance = signature(Three(mean, mean, mean))
    assert found == pytest.approx(2**0.5 * mean.norm().item())
    torch.testing.assert_close(variance, torch.tensor([1.0, 0.0], dtype=torch.float64))


@pytest.mark.model
def test_demonstrations_that_repeat_are_fitted_as_they_are_once(model):
    once = tiny.demonstrations(6)
    # Each text seven times: the covariances are the same, and their other singular values are rounding.
    repeated = sl.Demonstrations([demo for demo in once for _ in range(7)])
    edits = [sl.fit(sl.capture(model, demos, progress=False), rank=(3, 2)) for demos in (once, repeated)]
    for layer in range(tiny.N_LAYERS):
        kept, again = (edit.subspaces[layer].keep[0] for edit in edits)
        torch.testing.assert_close(kept @ kept.mT, again @ again.mT, rtol=0, atol=1e-6)


@pytest.mark.model
def test_a_covariance_that_leace_cannot_decompose_is_an_activation_error():
    fitter_of = pytest.importorskip("concept_erasure").LeaceFitter
    fitter = fitter_of(4, 1, dtype=torch.float64, shrinkage=False)
    fitter.update(torch.full((6, 4), float("nan"), dtype=torch.float64), torch.arange(6.0)[:, None])
    with pytest.raises(sl.ActivationError, match=r"layer 2: the covariance of the activations could not be decomposed"):
        _eraser([fitter], 2)
