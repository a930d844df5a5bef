"""Sentences on the page of an edit's circuit: each says what its numbers bear, and no more."""

import pytest
import torch

import sea_lens as sl
from sea_lens.cli import circuit_shares as shares

SURE, DOUBTFUL = [1.0, 1.1, 0.9, 1.2, 1.05], [1.0, -1.0, 2.0, -1.5, 0.5]


def recovered(effects, values, *, held_out=True, direct=False):
    """A recovery of two nodes by its numbers, beside two random orders."""
    effects, values = torch.tensor(effects, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    items, beside = values.expand(len(effects), -1), torch.stack([values, values * 0])
    none = torch.zeros(0, 3, dtype=torch.float64)
    nodes = (0, 0), (0, "mlp")
    return sl.Recovery(nodes, "greedy", direct, (0, 1, 2), effects, items, items, beside, beside, none, none, held_out)


def truncated(effects, share=1.0):
    effects = torch.tensor(effects, dtype=torch.float64)
    none = torch.zeros(0, 1, dtype=torch.float64)
    items, moved = share * effects[:, None], torch.ones(1, 1, dtype=torch.float64)
    return sl.Truncation((1,), (0,), effects, items, moved, none)


def test_no_share_is_told_of_an_effect_that_may_be_nothing():
    for lines in (shares.few_planes(truncated(DOUBTFUL), 0.8), shares.few_nodes(recovered(DOUBTFUL, [0, 9, 9]), 0.8)):
        assert "no share of it is told, since its interval contains 0." in " ".join(lines)
        assert "%" not in " ".join(lines)


def test_how_few_suffice_is_said_with_the_effect_that_it_is_a_share_of():
    assert shares.few_planes(truncated(SURE), 0.8)[0].endswith("nats. 1 plane of each layer has 80% of it.")
    assert "No number of planes that was tried has 80%" in shares.few_planes(truncated(SURE, 0.5), 0.8)[0]
    first, second, others, names = shares.few_nodes(recovered(SURE, [0.0, 0.9, 1.0]), 0.8)
    assert first.startswith("Alone: On 5 contrasts that nodes were not chosen on the effect is +1.050 [")
    assert second == "1 of 2 heads and MLPs keeps 80% of it."
    assert others == "Of 2 random orders those that do need 1, 1 never reach it; 1 of 2 do with as few."
    assert names == "The first are 0.0, 0.mlp."
    assert "chosen on too" in shares.few_nodes(recovered(SURE, [0.0, 0.9, 1.0], held_out=False), 0.8)[0]


@pytest.mark.parametrize(
    ("ceiling", "told"),
    [(0.4, "the rest the edit itself does"), (-0.4, "All 2 together act against it: -0.400 nats, -38% of it")],
)
def test_where_the_rest_goes_is_told_by_the_sign_of_what_all_nodes_keep(ceiling, told):
    lines = shares.few_nodes(recovered(SURE, [0.0, ceiling / 2, ceiling]), 0.8)
    assert told in lines[2]
    assert ("the edit itself" in lines[2]) == (ceiling > 0)


@pytest.mark.parametrize(
    ("needed", "ours", "told"),
    [
        ([3, 5, 9], 3, "Of 3 random orders those that do need 3 to 9; 1 of 3 do with as few."),
        ([None, 4], 2, "Of 2 random orders those that do need 4, 1 never reach it; 0 of 2 do with as few."),
        ([None], None, "1 random order never reaches it."),
    ],
)
def test_how_many_others_do_with_as_few(needed, ours, told):
    assert shares.needed_by_others(needed, "random orders", ours) == told
