"""Circuits whose parts do not add up: what each method must find, and what some of them must miss."""

import itertools

import pytest
import torch

import sea_lens as sl
from sea_lens.testbed.circuits import CIRCUITS, INTERACTING, N_HEADS, N_LAYERS

pytestmark = pytest.mark.model
LEAST = 0.01
ALONG_ONE_WAY = [name for name, circuit in INTERACTING.items() if circuit.edges]


def assert_first(result, wanted):
    """The planted parts come first, and no other has more than 1 % of the effect."""
    assert abs(result.effect) > 0.3
    found = dict(result.top(result.values.numel()))
    for label, value in found.items():
        assert label in wanted or abs(value / result.effect) <= LEAST, (result.method, label, value / result.effect)
    assert {label for label, _ in result.top(len(wanted))} == set(wanted)


def assert_shares(result, shares):
    assert abs(result.effect) > 0.3
    for label, value in zip(result.labels, result.values.flatten().tolist(), strict=True):
        assert abs(value / result.effect - shares.get(label, 0.0)) <= LEAST, (result.method, label)


@pytest.mark.parametrize("method", ["path", "shapley", "leave_one_out", "only_one"])
@pytest.mark.parametrize("name", ALONG_ONE_WAY)
def test_layers_are_found_whatever_the_way(name, method, build, backend):
    case = build(name, backend)
    assert_shares(sl.layer_contributions(case.model, case.edit, case.contrasts, method), case.circuit.layers)


@pytest.mark.parametrize("method", ["direct", "sufficiency", "necessity", "gradient"])
@pytest.mark.parametrize("name", ALONG_ONE_WAY)
def test_heads_are_found_whatever_the_way(name, method, build, backend):
    case = build(name, backend)
    found = sl.head_contributions(case.model, case.edit, case.contrasts, method)
    assert_first(found, case.circuit.direct if method == "direct" else case.circuit.carried)
    if method in ("sufficiency", "necessity"):
        assert_shares(found, case.circuit.carried)


@pytest.mark.parametrize("name", ["by_key", "by_query"])
def test_the_dropped_direction_is_found_behind_attention(name, build, backend):
    case = build(name, backend)
    sides = sl.direction_contributions(case.model, case.edit, case.contrasts, basis="sides", describe=0)
    # Here the myth alone is read. The old norm makes everything √2 times as long, of which the myth is dropped.
    (dropped,) = case.directions
    assert_shares(sides, {dropped: 2**0.5, (0, "norm", 0): 1 - 2**0.5})


@pytest.mark.parametrize("name", [name for name in (*CIRCUITS, *INTERACTING) if (CIRCUITS | INTERACTING)[name].edges])
def test_mediation_finds_the_way(name, build, backend):
    case = build(name, backend)
    exact = sl.mediation(case.model, case.edit, case.contrasts, "exact")
    assert_shares(exact, case.circuit.edges)
    estimate = sl.mediation(case.model, case.edit, case.contrasts, exact=0)
    assert_first(estimate, case.circuit.edges)


@pytest.mark.parametrize("name", ["head", "series"])
def test_the_second_of_two_heads_is_reached_through_the_first_alone(name, build, backend):
    case = build(name, backend)
    whole = sl.mediation(case.model, case.edit, case.contrasts, "exact", whole=True)
    shares = dict(zip(whole.labels, (whole.values / whole.effect).tolist(), strict=True))
    assert shares["all", 2, 1, "v"] == pytest.approx(1.0, abs=LEAST)
    assert shares[0, 2, 1, "v"] == pytest.approx(0.0 if name == "series" else 1.0, abs=LEAST)


@pytest.mark.parametrize("name", ["both_layers", "either_layer"])
def test_pairs_of_layers_are_found_by_interactions(name, build, backend):
    case = build(name, backend)
    both = name == "both_layers"
    for method in ("shapley", "only_one", "leave_one_out"):
        found = sl.interactions(case.model, case.edit, case.contrasts, method=method)
        assert found.players == (0, 1)
        # Two that act only together add all of it beyond each; of two of which either is enough one adds nothing.
        assert_shares(
            found,
            {(0, 1): 1.0 if both else -1.0}
            | {
                "shapley": {(0,): 0.5, (1,): 0.5},
                "only_one": {(0,): 0.0 if both else 1.0, (1,): 0.0 if both else 1.0},
                "leave_one_out": {(0,): 1.0 if both else 0.0, (1,): 1.0 if both else 0.0},
            }[method],
        )
    alone = sl.layer_contributions(case.model, case.edit, case.contrasts, "only_one")
    without = sl.layer_contributions(case.model, case.edit, case.contrasts, "leave_one_out")
    missed = alone if both else without
    assert (missed.values.abs() <= LEAST * abs(missed.effect)).all()


def test_a_pair_of_heads_that_each_alone_does_nothing(build, backend):
    case = build("both_heads", backend)
    pair = ((1, 0), (1, 3))
    singly = sl.head_contributions(case.model, case.edit, case.contrasts, "sufficiency")
    assert singly.effect > 0.3
    assert (singly.values.abs() <= LEAST * singly.effect).all()
    # Whatever is missed by one of them is lost without either.
    lost = sl.head_contributions(case.model, case.edit, case.contrasts, "necessity")
    assert_shares(lost, {pair[0]: 1.0, pair[1]: 1.0})
    for of in (1, [*pair, (2, 0), (2, "mlp")]):
        found = sl.interactions(case.model, case.edit, case.contrasts, of, "shapley")
        assert found.closure_error <= 1e-6
        if of == 1:
            assert found.joint == pytest.approx(found.effect, rel=LEAST)
            assert_shares(found, {(pair[0],): 0.5, (pair[1],): 0.5, pair: 1.0})
    # The MLP that brings both together carries all of it by itself.
    assert found.singles()[2, "mlp"] == pytest.approx(found.effect * 2 / 3, rel=LEAST)


def test_sampled_interactions_find_the_pair(build, backend, monkeypatch):
    case = build("both_heads", backend)
    nodes = [*((1, head) for head in range(N_HEADS)), (2, 0), (2, 1)]
    exact = sl.interactions(case.model, case.edit, case.contrasts, nodes)
    monkeypatch.setattr("sea_lens.contributions.games.MAX_EXACT_PLAYERS", 4)
    found = sl.interactions(case.model, case.edit, case.contrasts, nodes, permutations=8, seed=1)
    # Here no set of others makes a difference to what the pair does, so that every sample is exact.
    assert torch.allclose(found.values, exact.values, atol=1e-5)
    assert found.details["exact"] is False
    assert len(found.labels) == 6 + 15


def test_shapley_interactions_are_the_average_over_all_sets(build, backend):
    case = build("both_heads", backend)
    players = [(1, 0), (1, 1), (1, 3), (2, "mlp")]
    found = sl.interactions(case.model, case.edit, case.contrasts, players)
    worths = {}
    for size in range(5):
        for some in itertools.combinations(players, size):
            if len(some) > 1:
                together = sl.interactions(case.model, case.edit, case.contrasts, list(some), "only_one")
                worths[frozenset(some)] = together.joint
            elif some:
                one = sl.interactions(case.model, case.edit, case.contrasts, [*some, (0, 0)], "only_one")
                worths[frozenset(some)] = one.singles()[some[0]]
            else:
                worths[frozenset()] = 0.0
    for pair in itertools.combinations(players, 2):
        others = [player for player in players if player not in pair]
        wanted = 0.0
        for size, weight in ((0, 1 / 3), (1, 1 / 6), (2, 1 / 3)):
            for base in itertools.combinations(others, size):
                s = frozenset(base)
                wanted += weight * (worths[s | set(pair)] - worths[s | {pair[0]}] - worths[s | {pair[1]}] + worths[s])
        assert dict(zip(found.labels, found.values.tolist(), strict=True))[pair] == pytest.approx(wanted, abs=1e-6)


def test_interactions_refuse_what_they_cannot_play_with(build, backend):
    case = build("both_heads", backend)
    for of, message in (
        (7, f"no layer 7: the model has {N_LAYERS}"),
        ("heads", "unknown players 'heads': expected 'layers', 'edits', a layer, or a list of nodes"),
        ([(0, 9)], r"no such nodes: \[\(0, 9\)\]"),
        ("layers", r"at least two players, got \[0\]"),
    ):
        with pytest.raises(sl.InputError, match=message):
            sl.interactions(case.model, case.edit, case.contrasts, of)
    with pytest.raises(sl.InputError, match="unknown method 'path'"):
        sl.interactions(case.model, case.edit, case.contrasts, method="path")


def test_interactions_stand_beside_their_controls_as_table_and_figure(build, backend):
    case = build("both_heads", backend)
    found = sl.interactions(case.model, case.edit, case.contrasts, 1, control=[case.edit, case.edit])
    assert found.control_values is not None
    assert torch.allclose(found.control_values, found.values)
    frame = found.to_frame()
    assert frame[["first", "second"]].to_numpy().tolist()[:2] == [["1.0", ""], ["1.1", ""]]
    assert len(frame) == 4 + 6
    assert found.matrix[0, 3] == found.matrix[3, 0] == found.top_pairs(1)[0][1]
    title = " ".join(found.plot().get_title().split())
    assert title.startswith("Alone (diagonal), and what pairs do beyond that (shapley): effect +4.000 nats framed:")


def test_through_a_real_norm_the_dropped_direction_comes_first(build, backend):
    case = build("final_norm", backend)
    found = sl.direction_contributions(case.model, case.edit, case.contrasts, basis="sides", describe=0)
    (dropped,) = case.directions
    assert found.top(1)[0][0] == dropped
    for label, value in zip(found.labels, found.values.tolist(), strict=True):
        # What the old norm multiplies is divided by the final one.
        assert label in (dropped, (0, "norm", 0)) or abs(value / found.effect) <= LEAST
