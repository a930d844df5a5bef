import numpy as np
import pytest

import sea_lens as sl


def test_the_interval_is_that_of_the_normal_limit_for_many_items():
    items = np.random.default_rng(0).normal(0.3, 2.0, size=4000)
    interval = sl.bootstrap(items)
    half = 1.96 * items.std() / np.sqrt(len(items))
    assert interval.mean == pytest.approx(items.mean())
    assert interval.high - interval.mean == pytest.approx(half, rel=0.05)
    assert interval.mean - interval.low == pytest.approx(half, rel=0.05)


def test_coverage_is_what_it_says():
    rng = np.random.default_rng(1)
    covered = [not sl.bootstrap(rng.normal(size=60), resamples=400).excludes(0.0) for _ in range(400)]
    assert 0.90 <= np.mean(covered) <= 0.98


def test_the_same_seed_gives_the_same_interval():
    items = np.random.default_rng(2).normal(size=30)
    assert sl.bootstrap(items) == sl.bootstrap(items)
    assert sl.bootstrap(items, seed=1) != sl.bootstrap(items)


def test_constant_items_have_an_interval_of_no_width():
    interval = sl.bootstrap(np.full(7, 0.25))
    assert interval.low == interval.high == 0.25
    assert interval.excludes(0.0)
    assert not interval.excludes(0.25)
