"""Sentences on the page of an edit's circuit: each says what its numbers bear, and no more."""

import dataclasses
import re

import pytest
import torch

import sea_lens as sl
from sea_lens.cli import circuit_shares as shares
from sea_lens.cli import circuit_words as words
from sea_lens.contributions.interaction_results import Interactions
from sea_lens.contributions.results import PositionContributions

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
    assert first.startswith("Alone: on 5 contrasts that nodes were not chosen on the effect is +1.050 [")
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


def of_noise(seed, n=64, parts=(3, 20)):
    items = torch.randn(n, *parts, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    layers, positions = map(tuple, map(range, parts))
    return PositionContributions("sufficiency", items, items.sum((1, 2)), layers=layers, positions=positions)


def test_the_largest_of_many_that_do_nothing_is_not_told_from_nothing():
    # Of 60 parts of pure noise the largest on all contrasts is told from 0 in a third of the repetitions.
    missed, biased, n = 0, 0.0, 40
    for seed in range(n):
        found = of_noise(seed)
        first, line, *_ = words.told_of(found, "places", 1, with_verdict=False)
        assert first == "The largest places on half of the contrasts, with their values on the other 32:"
        value, low, high = (float(x) for x in re.findall(r"[+-]\d+\.\d+", line))
        label, told = found.top(1, held_out=True)[0]
        assert value == pytest.approx(told, abs=6e-4)
        interval = found.interval(label, held_out=True)
        assert (low, high) == pytest.approx((interval.low, interval.high), abs=6e-4)
        missed += low > 0 or high < 0
        chosen_by = found.item_values[::2].mean(0).flatten()
        biased += value * float(chosen_by[chosen_by.abs().argmax()].sign())
    # 5 % of 40, within the 99.9 % quantile of a binomial; and the mean of the values is 0 within 4 standard errors.
    assert missed <= 7
    assert abs(biased / n) < 4 / (32 * n) ** 0.5


def test_where_all_parts_are_named_none_is_chosen():
    found = of_noise(0, parts=(1, 2))
    lines = words.told_of(found, "places", 2, with_verdict=False)
    assert len(lines) == 2
    whole = {found.named(label): value for label, value in zip(found.labels, found.values.flatten(), strict=True)}
    for line in lines:
        assert f"{whole[line.split(':')[0].replace('Layer', 'layer')]:+.3f} nats" in line


def test_of_few_contrasts_it_is_said_that_they_chose_and_tell():
    assert "10 contrasts, which are too few to choose on some" in words.told_of(of_noise(0, 10), "places", 1)[0]


def test_controls_are_those_of_all_contrasts_beside_the_value_on_all():
    found = of_noise(3)
    found = dataclasses.replace(found, control_values=torch.zeros(2, 3, 20), control_effects=torch.zeros(2))
    first, line, last = words.told_of(found, "places", 1)
    assert first.endswith("on the other 32, and on all beside controls:")
    label = found.top(1, held_out=True)[0][0]
    on_all = found.values[label].item()
    assert f"; on all {on_all:+.3f} nats, controls +0.000 to +0.000, p = " in line
    assert last == "2 controls cannot show which of 60 places are beyond them: that takes 19."


@pytest.mark.parametrize(("players", "told"), [(2, "Layers 0 and 1 do together, beyond"), (3, "Of 3 pairs layers ")])
def test_one_pair_is_not_the_largest_of_pairs(players, told):
    pairs = tuple((a, b) for a in range(players) for b in range(a + 1, players))
    items = torch.randn(30, players + len(pairs), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Interactions(
        "shapley", items, items.sum(1), players=tuple(range(players)), pairs=pairs, item_joint=items[:, 0]
    )
    line = words.told_of_pairs(found)
    assert line.startswith(told)
    of_pairs = [label for label, _ in found.top(9, held_out=True) if len(label) == 2]
    interval = found.interval(of_pairs[0], held_out=players > 2)
    assert f"{interval.mean:+.3f} nats [{interval.low:+.3f}, {interval.high:+.3f}]" in line
