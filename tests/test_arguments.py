import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from tiny import contrasts, demonstrations, fitted

import sea_lens as sl
from sea_lens._support.arguments import as_truth_value
from sea_lens.spectral.features import FEATURE_MAPS


def activations(seed=0):
    generator = torch.Generator().manual_seed(seed)
    neutral, positive, negative = (torch.randn(20, 3, 6, generator=generator) for _ in range(3))
    return neutral, positive, negative


def test_scalars_of_numpy_and_torch_are_numbers(tmp_path):
    plain = sl.fit_activations(*activations(), rank=(3, 2), spectrum_power=1)
    for rank in (np.array([3, 2]), torch.tensor([3, 2]), (np.int64(3), np.int64(2))):
        edit = sl.fit_activations(*activations(), rank=rank, spectrum_power=np.int64(1), centre=bool(np.bool_(False)))
        assert edit.ranks == plain.ranks
        edit.save(tmp_path / "edit.safetensors")
    energies = sl.fit_activations(*activations(), energy=np.array([0.9, 0.5], dtype=np.float32))
    energies.save(tmp_path / "edit.safetensors")
    x = torch.randn(2, 4, 6)
    expected = plain(x, 1, 0.5)
    for layer in (np.int64(1), torch.tensor(1)):
        assert torch.equal(plain(x, layer, 0.5), expected)
    for strength in (np.float32(0.5), np.array(0.5), torch.tensor(0.5)):
        assert torch.equal(plain(x, 1, strength), expected)
    assert plain.choose_layers(np.int64(1)) == plain.choose_layers(torch.tensor([1])) == (1,)
    assert all(type(layer) is int for layer in plain.choose_layers(np.array([0, 2])))


def test_a_strength_for_each_token():
    edit = sl.fit_activations(*activations(), rank=(3, 2))
    x, strength = torch.randn(2, 4, 6), torch.rand(2, 4)
    found = edit(x, 0, strength)
    for row in range(2):
        for token in range(4):
            torch.testing.assert_close(found[row, token], edit(x[row, token], 0, strength[row, token].item()))
    torch.testing.assert_close(edit(x, 0, torch.tensor([[0.1], [0.2]]))[1], edit(x[1], 0, 0.2))


@pytest.mark.parametrize(
    "strength", [float("nan"), float("inf"), torch.tensor([float("nan")]), torch.ones(3), "a", None]
)
def test_strengths_that_cannot_be_are_refused(strength):
    edit = sl.fit_activations(*activations(), rank=(3, 2))
    call = sl.ActivationEdit.__call__
    call = getattr(call, "__wrapped__", call)
    with pytest.raises(sl.InputError, match="strength"):
        call(edit, torch.randn(2, 4, 6), 0, strength)


FROM_STATISTICS = [
    sl.fit,
    sl.mean_difference,
    sl.directional_ablation,
    sl.generalised_eigen,
    sl.angular_steering,
]


@pytest.mark.parametrize("wrong", [None, "statistics.safetensors", [1.0], {}], ids=repr)
@pytest.mark.parametrize("function", FROM_STATISTICS, ids=lambda function: function.__name__)
def test_what_is_no_statistics_is_refused_by_every_method(function, wrong):
    # Past the check of types, which is only there in tests.
    call = getattr(function, "__wrapped__", function)
    with pytest.raises(sl.InputError, match=f"expected statistics, as sl.capture gives .* got {type(wrong).__name__}"):
        call(wrong)


@pytest.mark.parametrize("name", ["permuted", "resampled", "randomised"])
def test_controls_of_what_is_no_spectral_edit_are_refused(name):
    given: Any = sl.MeanDifference("mlp_out", {0: torch.ones(1, 4, dtype=torch.float64)}, None, {})
    call = getattr(getattr(sl, name), "__wrapped__", getattr(sl, name))
    arguments = (given, 0) if name == "randomised" else (None, given, ())
    with pytest.raises(sl.InputError, match=f"{name} needs a spectral edit, .* got MeanDifference"):
        call(*arguments)


def test_a_feature_map_is_recorded_whole(tmp_path):
    wide = dataclasses.replace(FEATURE_MAPS["tanh"], eps=0.05)
    edit = sl.fit_activations(*activations(), feature=wide, rank=3)
    edit.save(tmp_path / "edit.safetensors")
    x = 3 * torch.randn(5, 6)
    assert torch.equal(sl.SpectralEdit.load(tmp_path / "edit.safetensors")(x, 0), edit(x, 0))
    with pytest.raises(sl.FileError, match=r"of eps 0\.05, got 0\.0001"):
        sl.SpectralEdit.load(tmp_path / "edit.safetensors", feature=FEATURE_MAPS["tanh"])
    with pytest.raises(sl.InputError, match="the name of a map that sea_lens has"):
        sl.fit_activations(*activations(), feature=sl.FeatureMap("identity", lambda x: 2 * x, lambda y: y / 2), rank=3)


def test_activations_that_carry_nothing_or_overflow_are_refused():
    zeros = torch.zeros(4, 1, 6)
    with pytest.raises(sl.ActivationError, match="carry nothing"):
        sl.fit_activations(zeros, zeros, zeros, rank=2)
    huge = torch.full((4, 1, 6), 1e200, dtype=torch.float64)
    with pytest.raises(sl.ActivationError, match="overflows"):
        sl.fit_activations(huge, huge, huge, rank=2)


def test_shards_can_be_summed():
    shards = [sl.CrossCovariance.empty((0,), 1, 6, site="mlp_out", feature=FEATURE_MAPS["identity"]) for _ in range(2)]
    for i, shard in enumerate(shards):
        neutral, positive, negative = (x[:, :1, None].double() for x in activations(i))
        shards[i] = shard.updated(neutral, positive, negative)
    whole = sum(shards)
    assert isinstance(whole, sl.CrossCovariance)
    assert whole.n == 40


def test_edits_can_be_compared_and_hashed():
    edit = sl.fit_activations(*activations(), rank=2)
    assert edit == edit
    assert len({edit, sl.fit_activations(*activations(), rank=2)}) == 2


@pytest.mark.model
@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_must_be_positive(batch_size, model):
    edit, items = fitted(model), contrasts()
    for call in (
        lambda: sl.effect(model, edit, items, batch_size=batch_size),
        lambda: sl.layer_contributions(model, edit, items, batch_size=batch_size),
        lambda: sl.head_contributions(model, edit, items, batch_size=batch_size),
        lambda: sl.capture(model, demonstrations(), batch_size=batch_size),
        lambda: sl.generate(model, "w1", batch_size=batch_size),
    ):
        with pytest.raises(sl.InputError, match=f"batch_size {batch_size}: expected at least 1"):
            call()


@pytest.mark.model
def test_a_model_that_gives_nan_is_named(load_tiny):
    model = load_tiny("llama", "bridge")
    handle = model.hook_dict["blocks.1.hook_mlp_out"]
    edit = fitted(model)
    handle.add_hook(lambda x, hook: x * float("nan"))
    try:
        with pytest.raises(sl.ActivationError, match="log-probability of nan"):
            sl.effect(model, edit, contrasts())
    finally:
        handle.remove_hooks(including_permanent=True)


@pytest.mark.model
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_contributions_do_not_care_for_the_grad_mode_around_them(mode, model):
    edit, items = fitted(model), contrasts(3)
    expected = sl.layer_contributions(model, edit, items)
    gradient = sl.head_contributions(model, edit, items, "gradient", sample=0)
    fresh = fitted(model)
    with mode():
        # The first use of an edit fills its cache, in whatever mode that is.
        fresh(torch.randn(2, 32), 0)
        torch.testing.assert_close(sl.layer_contributions(model, fresh, items).values, expected.values)
        found = sl.head_contributions(model, fresh, items, "gradient", sample=0)
        torch.testing.assert_close(found.values, gradient.values)
    torch.testing.assert_close(sl.layer_contributions(model, fresh, items).values, expected.values)


@pytest.mark.model
def test_path_contributions_after_generation(model):
    fresh = fitted(model)
    sl.generate(model, "w1 w2", fresh, max_new_tokens=2)
    assert sl.layer_contributions(model, fresh, contrasts(3)).closure_error < 1e-2


def test_truth_values_are_those_of_python_numpy_and_torch_alone():
    for value in (True, np.True_, torch.tensor(True)):
        assert as_truth_value(value, "direct") is True
    for value in (0, 1, "no", None, [True], np.array([True]), torch.tensor([True])):
        with pytest.raises(sl.InputError, match=r"direct .*: expected True or False"):
            as_truth_value(value, "direct")
