import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sea_lens as sl
from sea_lens.spectral.features import FEATURE_MAPS, feature_map

# The x whose φ(x) lies within the clamped range.
IN_RANGE = {
    "identity": (-1e6, 1e6),
    "squared_exponential": (-math.sqrt(-2 * math.log(1e-4)), math.sqrt(-2 * math.log(1e-4))),
    "tanh": (-math.atanh(1 - 1e-4), math.atanh(1 - 1e-4)),
    "elu": (math.log(1e-4), 1e6),
}


@pytest.mark.parametrize("name", FEATURE_MAPS)
@given(share=st.floats(0, 1))
def test_inverse_undoes_the_map_within_its_range(name, share):
    low, high = IN_RANGE[name]
    x = torch.tensor([low + share * (high - low)], dtype=torch.float64)
    feature = FEATURE_MAPS[name]
    # exp(-x²/2) is flat at 0: there the best that float64 can do is about the root of its precision.
    torch.testing.assert_close(feature.invert(feature.forward(x), x), x, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("name", FEATURE_MAPS)
@pytest.mark.parametrize("value", [-1e30, -5.0, -1.0, 0.0, 0.5, 1.0, 2.0, 1e30])
def test_values_outside_the_range_are_clamped_into_it(name, value):
    feature = FEATURE_MAPS[name]
    assert torch.isfinite(feature.invert(torch.tensor([value]), torch.tensor([1.0]))).all()


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_gradients_are_finite_everywhere(name):
    feature = FEATURE_MAPS[name]
    x = torch.tensor([-50.0, -1.0, 0.0, 1.0, 50.0], requires_grad=True)
    feature.invert(feature.forward(x), x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_gradient_of_the_round_trip_is_one_within_the_range(name):
    x = torch.tensor([-2.0, -0.7, 0.6, 1.9], dtype=torch.float64, requires_grad=True)
    feature = FEATURE_MAPS[name]
    (gradient,) = torch.autograd.grad(feature.invert(feature.forward(x), x).sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(x))


def test_squared_exponential_carries_the_sign_of_the_incoming_activation():
    feature = FEATURE_MAPS["squared_exponential"]
    y = torch.full((2,), 0.5)
    negative, positive = feature.invert(y, torch.tensor([-3.0, 3.0])).tolist()
    assert negative == pytest.approx(-math.sqrt(2 * math.log(2)))
    assert positive == -negative


def test_a_map_of_ones_own_goes_through_a_fit():
    cube = sl.FeatureMap("cube", lambda x: x**3, lambda y: y.sign() * y.abs() ** (1 / 3))
    x = torch.randn(20, 1, 4, generator=torch.Generator().manual_seed(0))
    edit = sl.fit_activations(x, x, x, feature=cube, rank=(4, 0))
    torch.testing.assert_close(edit(x[:, 0], 0), x[:, 0], rtol=1e-4, atol=1e-4)


def test_an_empty_range_is_refused():
    with pytest.raises(sl.InputError, match="empty"):
        sl.FeatureMap("none", torch.sin, torch.asin, range=(0.0, 1e-4))


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(sl.InputError, match=r"'cosine'.*identity, squared_exponential, tanh, elu"):
        feature_map("cosine")
