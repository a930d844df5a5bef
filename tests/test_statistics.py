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


def test_the_same_seed_gives_the_same_interval():
    items = np.random.default_rng(2).normal(size=30)
    assert sl.bootstrap(items) == sl.bootstrap(items)
    assert sl.bootstrap(items, seed=1) != sl.bootstrap(items)
