import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sea_lens as sl
from sea_lens.spectral.covariance import CrossCovariance
from sea_lens.spectral.features import FEATURE_MAPS


def activations(n, layers=2, units=1, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, layers, units, d, generator=generator) + 0.3 for _ in range(3)]


def streamed(triple, sizes, feature="identity", provenance=None):
    _, layers, units, d = triple[0].shape
    covariance = CrossCovariance.empty(
        tuple(range(layers)), units, d, site="mlp_out", feature=FEATURE_MAPS[feature], provenance=provenance
    )
    start = 0
    for size in sizes:
        covariance = covariance.updated(*(x[start : start + size] for x in triple))
        start += size
    return covariance


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5), seed=st.integers(0, 100))
def test_shards_merged_equal_one_pass(sizes, seed):
    triple = activations(sum(sizes), seed=seed)
    whole = streamed(triple, [sum(sizes)])
    starts = np.cumsum([0, *sizes])
    shards = [streamed([x[a:b] for x in triple], [b - a]) for a, b in itertools.pairwise(starts)]
    merged = shards[0]
    for shard in shards[1:]:
        merged = merged + shard
    for layer in whole.layers:
        for centre in (False, True):
            for ours, theirs in zip(merged.omega(layer, centre=centre), whole.omega(layer, centre=centre), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert merged.n == whole.n


@pytest.mark.parametrize("feature", FEATURE_MAPS)
def test_omega_is_the_mean_outer_product(feature):
    triple = activations(11, units=2)
    covariance = streamed(triple, [4, 4, 3], feature)
    h, plus, minus = (FEATURE_MAPS[feature].forward(x.double()).numpy() for x in triple)
    for layer in covariance.layers:
        for unit in range(2):
            for centre in (False, True):
                for found, other in zip(covariance.omega(layer, centre=centre), (plus, minus), strict=True):
                    a, b = h[:, layer, unit], other[:, layer, unit]
                    if centre:
                        a, b = a - a.mean(0), b - b.mean(0)
                    np.testing.assert_allclose(found[unit].numpy(), a.T @ b / 11, atol=1e-12)


def test_signature_is_that_of_the_stacked_activations_and_labels():
    triple = activations(9)
    covariance = streamed(triple, [9])
    stacked = np.concatenate([triple[1][:, 1, 0].double().numpy(), triple[2][:, 1, 0].double().numpy()])
    labels = np.repeat(np.eye(2), 9, axis=0)
    values = np.linalg.svd(stacked.T @ labels / 9, compute_uv=False)
    signature, explained = covariance.signature(1)
    assert signature == pytest.approx(values.sum())
    np.testing.assert_allclose(explained.numpy(), values**2 / (values**2).sum())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_activations_name_layer_and_demonstration(bad):
    triple = activations(6)
    triple[1][4, 1, 0, 2] = bad
    with pytest.raises(sl.ActivationError, match="positive activation of demonstration 4 at layer 1"):
        streamed(triple, [3, 3])


def test_shards_of_different_runs_are_refused():
    a = streamed(activations(3), [3], provenance={"position": "last"})
    b = streamed(activations(3), [3], provenance={"position": "mean"})
    with pytest.raises(sl.MismatchError, match="position is 'last' here, 'mean' there"):
        _ = a + b
    with pytest.raises(sl.MismatchError, match="feature"):
        _ = streamed(activations(3), [3]) + streamed(activations(3), [3], "tanh")
    with pytest.raises(sl.MismatchError, match="width"):
        _ = streamed(activations(3), [3]) + streamed(activations(3, d=4), [3])


def test_merging_leaves_the_shards_as_they_were():
    a, b = streamed(activations(3), [3]), streamed(activations(3, seed=1), [3])
    before = a.omega(0)[0].clone()
    _ = a + b
    assert torch.equal(a.omega(0)[0], before)
    assert a.n == 3


@pytest.mark.parametrize("d", [5, 9], ids=["sums", "activations"])
def test_save_and_load_give_the_same_statistics(tmp_path, d):
    provenance = {"position": "last", "demonstrations": [{"n": 7}]}
    covariance = streamed(activations(7, d=d), [7], "tanh", provenance=provenance)
    covariance.save(tmp_path / "cov.safetensors")
    again = sl.CrossCovariance.load(tmp_path / "cov.safetensors")
    assert again.n == 7
    assert again.provenance == covariance.provenance
    for layer in covariance.layers:
        assert all(map(torch.equal, again.omega(layer), covariance.omega(layer)))
    assert (again + covariance).n == 14


def test_an_edit_is_no_covariance(tmp_path):
    x = activations(4)[0][:, :, 0]
    sl.fit_activations(x, x, x, rank=1).save(tmp_path / "edit.safetensors")
    with pytest.raises(sl.FileError, match="is a sea_lens spectral edit: expected a sea_lens cross-covariance"):
        sl.CrossCovariance.load(tmp_path / "edit.safetensors")
