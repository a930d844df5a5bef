import pytest
import torch

import sea_lens as sl
from sea_lens.testbed.circuits import CIRCUITS, N_HEADS, N_LAYERS
from sea_lens.testbed.planted import planted

pytestmark = pytest.mark.model
LEAST = 0.01


def assert_found(result, shares):
    """The planted parts have their shares of the effect, to within 1 %, and all others at most 1 % of it."""
    assert abs(result.effect) > 0.3
    found = dict(result.top(result.values.numel()))
    for label, value in found.items():
        assert abs(value / result.effect - shares.get(label, 0.0)) <= LEAST, (result.method, label)
    if shares:
        first = [label for label, _ in result.top(len(shares))]
        assert set(first) == set(shares)


@pytest.mark.parametrize("name", CIRCUITS)
def test_the_edit_has_the_effect_that_the_weights_give_it(name, build, backend):
    case = build(name, backend)
    found = sl.effect(case.model, case.edit, case.contrasts)
    assert found.before == pytest.approx(0, abs=1e-4)
    assert found.effect > 0.3


@pytest.mark.parametrize("method", ["path", "shapley", "leave_one_out", "only_one"])
@pytest.mark.parametrize("name", CIRCUITS)
def test_every_layer_method_finds_the_planted_layers(name, method, build, backend):
    case = build(name, backend)
    assert_found(sl.layer_contributions(case.model, case.edit, case.contrasts, method), case.circuit.layers)


@pytest.mark.parametrize("name", CIRCUITS)
def test_directions_find_the_planted_direction(name, build, backend):
    case = build(name, backend)
    found = sl.direction_contributions(case.model, case.edit, case.contrasts, basis="sides", describe=0)
    assert_found(found, case.directions)


@pytest.mark.parametrize("name", CIRCUITS)
def test_net_directions_find_the_plane_of_the_planted_direction(name, build, backend):
    case = build(name, backend)
    found = sl.direction_contributions(case.model, case.edit, case.contrasts, describe=0)
    # Kept and dropped directions are orthogonal here, so that each side is one eigenspace.
    assert set(found.dimensions.values()) == {3}
    assert_found(found, {(*place, side, 0): share for (*place, side, _), share in case.directions.items()})


@pytest.mark.parametrize("name", ["direct", "two_layers"])
def test_the_planted_direction_is_told_by_the_token_that_it_lowers(name, build, backend):
    case = build(name, backend)
    found = sl.direction_contributions(case.model, case.edit, case.contrasts, basis="sides", describe=1)
    (description,) = found.descriptions.values()
    assert description.lowers[0][0] == "Orlen"
    assert description.displacement < 0


@pytest.mark.parametrize("name", CIRCUITS)
def test_positions_find_where_the_subject_stands(name, build, backend):
    case = build(name, backend)
    found = sl.position_contributions(case.model, case.edit, case.contrasts)
    shares = found.values.sum(0) / found.effect
    # A planted head that is edited acts where it answers.
    at = 0 if case.circuit.subject_last or case.circuit.site == "z" else -3
    for position, share in zip(found.positions, shares.tolist(), strict=True):
        assert abs(share - (position == at)) <= LEAST


@pytest.mark.parametrize("method", ["direct", "sufficiency", "necessity", "gradient"])
@pytest.mark.parametrize("name", CIRCUITS)
def test_every_head_method_finds_the_planted_heads(name, method, build, backend):
    case = build(name, backend)
    found = sl.head_contributions(case.model, case.edit, case.contrasts, method)
    assert found.values.shape == (N_LAYERS, N_HEADS)
    circuit = case.circuit
    assert_found(found, circuit.direct if method == "direct" else circuit.carried)


@pytest.mark.parametrize("method", ["path", "shapley", "leave_one_out", "only_one"])
def test_methods_over_edited_heads_find_the_planted_head(method, build, backend):
    case = build("edited_head", backend)
    found = sl.head_contributions(case.model, case.edit, case.contrasts, method, permutations=2)
    assert_found(found, case.circuit.carried)


def test_a_circuit_is_no_accident_of_its_seed(backend):
    for seed in (1, 2):
        case = planted("parallel", backend, seed)
        found = sl.head_contributions(case.model, case.edit, case.contrasts, "necessity")
        assert_found(found, case.circuit.carried)
        assert torch.isfinite(found.standard_errors).all()


def test_an_unknown_circuit_is_refused():
    with pytest.raises(sl.InputError, match="unknown circuit 'loop': expected one of direct"):
        planted("loop")
