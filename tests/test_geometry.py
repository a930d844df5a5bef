"""Principal angles, edits of fewer directions, and edits of resampled demonstrations."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_subspaces import subspaces
from tiny import contrasts, demonstrations, fitted

import sea_lens as sl
from sea_lens.spectral.net import net_subspaces
from sea_lens.spectral.principal import cosines, truncated_subspaces

ANGLES = (10.0, 40.0, 75.0)


def at_angles(degrees, width=8, extra=0):
    """An edit of one layer whose kept and dropped directions lie at these angles, one pair a plane, and more kept."""
    basis = torch.linalg.qr(
        torch.randn(width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ).Q
    turned = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    first, second = basis[:, : len(degrees)], basis[:, len(degrees) : 2 * len(degrees)]
    kept = torch.cat([first, basis[:, 2 * len(degrees) : 2 * len(degrees) + extra]], 1)
    dropped = first * turned.cos() + second * turned.sin()
    neutral = torch.cat(
        [kept.T * torch.arange(len(kept.T), 0, -1)[:, None], dropped.T * torch.arange(3, 0, -1)[:, None]]
    )
    positive, negative = neutral.clone(), neutral.clone()
    positive[len(kept.T) :], negative[: len(kept.T)] = 0, 0
    neutral, positive, negative = (x[:, None].float() for x in (neutral, positive, negative))
    return sl.fit_activations(neutral, positive, negative, rank=(len(kept.T), len(degrees)))


def test_sides_lie_at_the_angles_that_were_made():
    found = sl.geometry(at_angles(ANGLES))
    np.testing.assert_allclose(found.angles(0), ANGLES, atol=1e-3)
    (pair,) = found.pairs
    assert pair.overlap == pytest.approx(np.mean(np.cos(np.radians(ANGLES)) ** 2), abs=1e-5)
    assert pair.random_overlap == 3 / 8
    row = found.to_frame().iloc[0]
    assert (row["smallest"], row["median"], row["largest"]) == pytest.approx(ANGLES, abs=1e-3)


def test_random_subspaces_overlap_as_they_must_on_average():
    (pair,) = sl.geometry(at_angles(ANGLES, width=24, extra=2), draws=400).pairs
    overlaps = np.square(np.cos(np.radians(pair.random))).mean(1)
    assert overlaps.mean() == pytest.approx(pair.random_overlap, abs=4 * overlaps.std() / 20)
    assert pair.dimensions == (5, 3, 24)


@given(st.integers(1, 7), st.integers(0, 7), st.integers(0, 7), st.integers(0, 9), st.integers(0, 99))
def test_a_truncated_edit_has_the_largest_net_directions_of_the_whole(d, keep, drop, k, seed):
    whole = subspaces(d, min(keep, d), min(drop, d), seed=seed)
    shorter = truncated_subspaces(whole, k)
    shorter.check()
    for side in ("keep", "drop"):
        own, all_of_it = (getattr(net_subspaces(one, "norm")[0], side)[0] for one in (shorter, whole))
        sizes, expected = own.square().sum(0), all_of_it.square().sum(0)[: own.shape[-1]]
        # Angles near zero are known to half of the digits.
        torch.testing.assert_close(sizes, expected, rtol=0, atol=1e-7)
    if k >= max(keep, drop):
        for one, other in zip(shorter.projections(), whole.projections(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_a_truncated_edit_is_saved_measured_and_changes_less(tmp_path):
    edit = at_angles(ANGLES, extra=1)
    x = torch.randn(5, 8, dtype=torch.float64)
    previous = torch.zeros(5, dtype=torch.float64)
    for k in range(5):
        shorter = edit.truncated(k)
        shorter.save(tmp_path / "edit.safetensors")
        again = sl.SpectralEdit.load(tmp_path / "edit.safetensors")
        assert again.ranks == shorter.ranks == {0: (k, max(k - 1, 0))}
        moved = (again(x, 0, combine="average") - x / 2).norm(dim=-1)
        assert (moved >= previous - 1e-9).all()
        previous = moved
    torch.testing.assert_close(edit.truncated(4)(x, 0), edit(x, 0))
    assert edit.truncated(2).provenance["truncated"] == 2


def test_a_feature_map_cannot_be_truncated():
    neutral, positive, negative = torch.rand(3, 9, 2, 6)
    edit = sl.fit_activations(neutral, positive, negative, feature="squared_exponential", rank=2)
    with pytest.raises(
        sl.InputError, match="only a linear edit can be truncated, got one through 'squared_exponential'"
    ):
        edit.truncated(1)
    with pytest.raises(sl.InputError, match="k"):
        at_angles(ANGLES).truncated(-1)


@pytest.mark.model
def test_layers_and_other_methods_are_compared(model):
    covariance = sl.capture(model, demonstrations(), progress=False)
    edit, steering = sl.fit(covariance, rank=(4, 3)), sl.mean_difference(covariance)
    frame = sl.geometry(edit).to_frame()
    assert frame["between"].value_counts().to_dict() == {"sides": 3, "layers": 6}
    kept = [edit.subspaces[layer].keep[0] for layer in (0, 2)]
    row = frame.query("between == 'layers' and layer == 0 and other_layer == 2 and subspace == 'kept'").iloc[0]
    assert row["overlap"] == pytest.approx(float((kept[0].T @ kept[1]).square().sum() / 4), abs=1e-9)
    beside = sl.geometry(edit, steering)
    for pair in beside.pairs:
        factor = getattr(edit.subspaces[pair.layer], "keep" if pair.subspace == "kept" else "drop")[0]
        vector = steering.vectors[pair.layer][0]
        assert pair.overlap == pytest.approx(
            float((factor.T @ vector).square().sum() / vector.square().sum()), abs=1e-6
        )
    given = {0: steering.vectors[0][0], 1: torch.stack([steering.vectors[1][0], 2 * steering.vectors[1][0]])}
    probes = sl.geometry(edit, given)
    assert [pair.dimensions[1] for pair in probes.pairs] == [1, 1, 1, 1]
    for mine, theirs in zip(probes.pairs, beside.pairs, strict=False):
        np.testing.assert_allclose(mine.angles, theirs.angles, atol=1e-5)


@pytest.mark.model
def test_heads_are_compared_head_by_head(model):
    edit = fitted(model, site="z", rank=(2, 1))
    probes = {1: edit.subspaces[1].keep.mT}
    found = sl.geometry(edit, probes)
    kept = [pair for pair in found.pairs if pair.subspace == "kept"]
    assert [(pair.layer, pair.head) for pair in kept] == [(1, head) for head in range(4)]
    assert all(pair.overlap == pytest.approx(1) for pair in kept)
    assert {pair.between for pair in sl.geometry(edit).pairs} == {"sides"}
    found.plot()


@pytest.mark.model
def test_resampled_edits_are_fits_to_demonstrations_drawn_anew(model):
    demos, edit = demonstrations(), fitted(model)
    found = sl.resampled(model, edit, demos, draws=2, seed=3)
    drawn = np.random.default_rng(3).integers(len(demos), size=len(demos))
    expected = sl.fit(sl.capture(model, [demos[i] for i in sorted(drawn.tolist())], progress=False), rank=edit.ranks)
    for one, other in zip(found[0].projections(1), expected.projections(1), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert sl.geometry(edit, found).to_frame()["other"].unique().tolist() == [0, 1]
    assert sl.effect(model, found[1], contrasts(2)).effect != 0


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        ({7: torch.ones(8)}, sl.InputError, r"the other is for layers \[7\], this edit for \[0\]: none in common"),
        ({0: torch.ones(5)}, sl.MismatchError, "directions have 5 entries, this edit's 8"),
    ],
)
def test_what_cannot_be_compared_is_refused(other, error, message):
    with pytest.raises(error, match=message):
        sl.geometry(at_angles(ANGLES), other)


def test_cosines_are_those_of_known_planes():
    one = torch.eye(4, dtype=torch.float64)[:, :2]
    turned = torch.tensor([[1.0, 0], [0, np.cos(0.3)], [0, np.sin(0.3)], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(cosines(one, turned), torch.tensor([1.0, np.cos(0.3)], dtype=torch.float64))
    assert cosines(one, turned[:, :0]).numel() == 0
