import json
import re
from importlib.metadata import version

import pytest
import torch
from safetensors import safe_open

import sea_lens as sl
from sea_lens.spectral.features import FEATURE_MAPS

RELEASE_NAMES = {"linear": "identity", "squared-exponential": "squared_exponential", "tanh": "tanh", "elu": "elu"}


def activations(n=30, layers=2, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    neutral = torch.randn(n, layers, d, generator=generator)
    return (
        neutral,
        neutral + torch.randn(n, layers, d, generator=generator),
        torch.randn(n, layers, d, generator=generator),
    )


@pytest.mark.parametrize("release_name", RELEASE_NAMES)
def test_a_fit_reproduces_every_projection_of_the_release(release_name, shared):
    with safe_open(shared / "golden" / "official_sea.safetensors", "pt") as file:
        ranks = json.loads(file.metadata()[f"{release_name}.uncentred.k"])
        neutral, positive, negative = (file.get_tensor(name) for name in ("neutral", "positive", "negative"))
        golden = [file.get_tensor(f"{release_name}.uncentred.uu_{sign}") for sign in ("positive", "negative")]
    edit = sl.fit_activations(neutral, positive, negative, feature=RELEASE_NAMES[release_name], energy=(0.99, 0.97))
    assert edit.ranks == {layer: tuple(pair) for layer, pair in enumerate(ranks)}
    for layer in edit.layers:
        for ours, theirs in zip(edit.projections(layer), golden, strict=True):
            assert (ours - theirs[layer]).abs().max() < 1e-5


def test_ranks_asked_for_are_the_ranks_given():
    edit = sl.fit_activations(*activations(), rank=(2, 5))
    assert edit.ranks == {0: (2, 5), 1: (2, 5)}
    positive, negative = edit.projections(0)
    assert round(positive.trace().item()) == 2
    assert round(negative.trace().item()) == 1


def test_an_energy_of_one_keeps_all_that_covaries():
    edit = sl.fit_activations(*activations(), energy=1.0)
    assert edit.ranks[0] == (6, 6)


def test_energies_may_differ_for_positive_and_negative():
    both = sl.fit_activations(*activations(), energy=(0.5, 0.99)).ranks[0]
    alone = [sl.fit_activations(*activations(), energy=k).ranks[0] for k in (0.5, 0.99)]
    assert both == (alone[0][0], alone[1][1])


def test_centring_subtracts_each_mean_after_the_map():
    triple = activations()
    edit = sl.fit_activations(*triple, feature="tanh", rank=(2, 2), centre=True)
    h, plus = (torch.tanh(x[:, 1].double()) for x in triple[:2])
    omega = (h - h.mean(0)).T @ (plus - plus.mean(0)) / len(h)
    leading = torch.linalg.svd(omega).U[:, :2]
    torch.testing.assert_close(edit.projections(1)[0], leading @ leading.T, atol=1e-10, rtol=0)
    assert edit.subspaces[1].centre is not None
    torch.testing.assert_close(edit.subspaces[1].centre[0], h.mean(0))


def test_a_constant_shift_between_positive_and_negative_moves_no_subspace():
    neutral, positive, _ = activations()
    centred = sl.fit_activations(neutral, positive, positive + 3.0, rank=(2, 2), centre=True)
    keep, drop = centred.projections(0)
    torch.testing.assert_close(keep + drop, torch.eye(6, dtype=torch.float64), atol=1e-6, rtol=0)


def test_heads_are_fitted_each_on_its_own():
    neutral, positive, negative = (x[:, :, None].repeat(1, 1, 2, 1) for x in activations())
    negative[:, :, 1] = positive[:, :, 1]
    edit = sl.fit_activations(neutral, positive, negative, site="z", rank=(2, 2))
    assert edit.ranks[0, 1] == (2, 2)
    both, first = edit.projections(0), edit.projections(0, head=0)
    assert both[0].shape == (2, 6, 6)
    assert torch.equal(both[0][0], first[0])
    flat = sl.fit_activations(*activations(), rank=(2, 2)).projections(0)
    torch.testing.assert_close(first, flat, atol=1e-10, rtol=0)
    x = torch.randn(3, 2, 6)
    keep, drop = edit.projections(1, head=1)
    y = x[:, 1].double() @ (keep + drop)
    expected = y * x[:, 1].norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(edit(x, 1)[:, 1], expected.float())


@pytest.mark.parametrize("feature", FEATURE_MAPS)
@pytest.mark.parametrize("centre", [False, True])
def test_a_saved_edit_loads_as_the_same_edit(feature, centre, tmp_path):
    edit = sl.fit_activations(*activations(), feature=feature, rank=(3, 1), centre=centre)
    edit.save(tmp_path / "edit.safetensors")
    again = sl.SpectralEdit.load(tmp_path / "edit.safetensors")
    x = torch.randn(4, 6)
    for layer in edit.layers:
        assert torch.equal(again(x, layer), edit(x, layer))
        assert torch.equal(again.projections(layer)[0], edit.projections(layer)[0])
    assert again.ranks == edit.ranks
    assert again.signature == edit.signature
    assert again.options == edit.options
    assert again.provenance == edit.provenance
    assert again.n == 30


def test_a_file_holds_factors_and_provenance(tmp_path):
    d = 64
    neutral, positive, negative = (torch.randn(20, 1, d, generator=torch.Generator().manual_seed(i)) for i in range(3))
    sl.fit_activations(neutral, positive, negative, rank=(2, 3)).save(tmp_path / "edit.safetensors")
    with safe_open(tmp_path / "edit.safetensors", "pt") as file:
        assert all(d * d not in (file.get_tensor(name).numel(),) for name in file.keys())  # noqa: SIM118
    header = sl.SpectralEdit.header(tmp_path / "edit.safetensors")
    assert header["options"]["rank"] == [2, 3]
    assert header["provenance"]["versions"]["torch"] == version("torch")


def test_a_map_of_ones_own_must_be_given_again_to_load(tmp_path):
    double = sl.FeatureMap("double", lambda x: 2 * x, lambda y: y / 2)
    edit = sl.fit_activations(*activations(), feature=double, rank=(2, 2))
    edit.save(tmp_path / "edit.safetensors")
    with pytest.raises(sl.FileError, match="'double': pass it as feature="):
        sl.SpectralEdit.load(tmp_path / "edit.safetensors")
    with pytest.raises(sl.FileError, match="'double', got 'tanh'"):
        sl.SpectralEdit.load(tmp_path / "edit.safetensors", feature=FEATURE_MAPS["tanh"])
    x = torch.randn(3, 6)
    assert torch.equal(sl.SpectralEdit.load(tmp_path / "edit.safetensors", feature=double)(x, 0), edit(x, 0))


@pytest.mark.parametrize("energy", [0, -0.1, 1.0001, 2, float("nan"), (0.5, 0.0)])
def test_energy_outside_its_range_is_refused(energy):
    with pytest.raises(sl.InputError, match=r"outside \(0, 1\]|a finite number"):
        sl.fit_activations(*activations(), energy=energy)


@pytest.mark.parametrize(
    ("rank", "message"), [(7, "above the width of the activations, 6"), ((-1, 2), "rank -1: expected at least 0")]
)
def test_ranks_that_cannot_be_are_refused(rank, message):
    with pytest.raises(sl.InputError, match=message):
        sl.fit_activations(*activations(), rank=rank)


def test_other_wrong_input_is_refused():
    triple = activations()
    with pytest.raises(sl.InputError, match="expected one number or a pair"):
        sl.fit_activations(*triple, rank=(1, 2, 3))
    with pytest.raises(sl.InputError, match="spectrum_power"):
        sl.fit_activations(*triple, spectrum_power=0)
    with pytest.raises(sl.InputError, match="unknown site 'mlp'"):
        sl.fit_activations(*triple, site="mlp")
    with pytest.raises(sl.MismatchError, match="three tensors of one shape"):
        sl.fit_activations(triple[0], triple[1][:5], triple[2])
    with pytest.raises(sl.MismatchError, match=r"\(n, layers, n_heads, d_head\)"):
        sl.fit_activations(*triple, site="z")
    zeros = torch.zeros(4, 2, 6)
    with pytest.raises(sl.ActivationError, match="layer 0: the cross-covariance is zero"):
        sl.fit_activations(zeros, zeros, zeros)
    triple[2][3, 1] = float("nan")
    with pytest.raises(sl.ActivationError, match="demonstration 3 at layer 1"):
        sl.fit_activations(*triple)


def test_calls_that_cannot_be_are_refused():
    edit = sl.fit_activations(*activations(), rank=2)
    with pytest.raises(sl.InputError, match=re.escape("no edit for layer 2: expected one of [0, 1]")):
        edit(torch.zeros(6), 2)
    with pytest.raises(sl.MismatchError, match=r"activations of shape \(…, 6\), got \(3, 5\)"):
        edit(torch.zeros(3, 5), 0)
    with pytest.raises(sl.InputError, match="unknown combine 'sum'"):
        edit(torch.zeros(6), 0, combine="sum")
    with pytest.raises(sl.InputError, match="no edit for layer 5"):
        edit.projections(5)


class Times(sl.ActivationEdit):
    """A user's own method, of one layer: x times the strength, or at strength 1 x itself."""

    combines = ("times",)
    site = "mlp_out"

    @property
    def layers(self):
        return (0,)

    @property
    def shape(self):
        return (1, 4)

    def arithmetic(self, layer, combine):
        return lambda x, strength: x if strength == 1 else x * strength


@pytest.mark.parametrize("options", [{}, {"spectrum_power": 1}, {"energy": 1.0}, {"rank": (3, 2)}])
@pytest.mark.filterwarnings("ignore:ranks above the numerical rank")
def test_a_layer_whose_negatives_tell_nothing_drops_nothing(options, tmp_path):
    neutral, positive, negative = torch.randn(3, 10, 2, 32, generator=torch.Generator().manual_seed(0))
    # All alike, so that nothing is left of them about their mean.
    negative[:, 0] = negative[:1, 0]
    edit = sl.fit_activations(neutral, positive, negative, centre=True, **options)
    assert edit.ranks[0][1] == 0 < edit.ranks[1][1]
    edit.save(tmp_path / "edit.safetensors")
    assert sl.SpectralEdit.load(tmp_path / "edit.safetensors").ranks == edit.ranks
    uncentred = sl.fit_activations(neutral, positive, 0 * negative, **options)
    assert all(ranks[1] == 0 for ranks in uncentred.ranks.values())
    x = neutral[:, 0]
    torch.testing.assert_close(uncentred(x, 0, combine="negative_only"), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_method_of_ones_own_saturates_too_and_never_gives_back_the_tensor_itself(dtype):
    x = torch.full((2, 4), torch.finfo(dtype).max / 2, dtype=dtype)
    assert (Times()(x, 0, 100.0) == torch.finfo(dtype).max).all()
    same = Times()(x, 0, 1.0)
    assert torch.equal(same, x)
    same.zero_()
    assert (x > 0).all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("shape", [(12,), (1, 12), (2, 3, 12)])
@pytest.mark.parametrize("strength", [1.0, 1.5])
def test_derivatives_taken_forwards_are_right_without_gradients(shape, strength):
    generator = torch.Generator().manual_seed(0)
    neutral, positive, negative = torch.randn(3, 40, 1, 12, generator=generator)
    edit = sl.fit_activations(neutral, positive, negative, rank=(3, 4))
    x, direction = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    small = 1e-6
    expected = (edit(x + small * direction, 0, strength) - edit(x - small * direction, 0, strength)) / (2 * small)
    with torch.no_grad():
        found = torch.func.jvp(lambda v: edit(v, 0, strength), (x,), (direction,))[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("combine", sl.COMBINES)
@pytest.mark.parametrize("strength", [1.0, 0.0, -1.5, 2.0**40])
def test_few_vectors_are_edited_as_any_number_is(dtype, combine, strength):
    """Without gradients an edit takes as few steps as it can, which no result shows but for rounding."""
    generator = torch.Generator().manual_seed(0)
    neutral, positive, negative = torch.randn(3, 40, 1, 12, generator=generator)
    edit = sl.fit_activations(neutral, positive, negative, rank=(3, 4))
    many = torch.randn(3, 4, 12, generator=generator).to(dtype)
    plain = many[:2, :3]
    dropped = edit.subspaces[0].drop[0, :, 0].to(dtype)
    special = [torch.zeros(12, dtype=dtype), dropped, plain[0, 0] * 1e-25, plain[0, 0] * 1e25, plain[0, 0] * torch.inf]
    for x in (many, plain, plain[:1, :1], plain[0, 0], *special, torch.stack([plain[0, 0], *special[:4]]), plain[:0]):
        with torch.no_grad():
            few = edit(x, 0, strength, combine)
        recorded = edit(x.clone().requires_grad_(), 0, strength, combine).detach()
        # Of a single vector norms are added up otherwise, unless it vanishes or is near the ends of the dtype.
        other = x.numel() == 12 and 2**-30 <= x.norm() <= 2**30
        apart = 8 * torch.finfo(dtype).eps if other and 0 < abs(strength) <= 2**30 else 0.0
        torch.testing.assert_close(few, recorded, rtol=apart, atol=apart * abs(strength), equal_nan=True)
        assert few.data_ptr() != x.data_ptr() or x.numel() == 0
