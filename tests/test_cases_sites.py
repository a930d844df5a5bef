"""Several sites and feature maps from one pass over the demonstrations: the numbers of each by itself."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import demonstrations, sentence

import sea_lens as sl
from sea_lens.spectral import store as stores
from sea_lens.spectral.site_stores import whole_shards

SITES = ["mlp_out", "attn_out", "resid_post", "z"]
OPTIONS: dict[str, Any] = {"progress": False, "batch_size": 4}
CUBE = sl.FeatureMap("cube", lambda x: x**3, lambda y: y.sign() * y.abs() ** (1 / 3))


@pytest.fixture
def passes(model):
    """A list that grows by the tokens of every forward pass of the model."""
    seen: list[torch.Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    yield seen
    handle.remove()


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of a batch or two, so that a few demonstrations make several."""
    monkeypatch.setattr(stores, "FEWEST", 5)
    monkeypatch.setattr(stores, "SHARD_NUMBERS", 0)


def same(one: sl.CrossCovariance, other: sl.CrossCovariance) -> bool:
    """Whether two captures are one to the last bit, and say the same of themselves."""
    facts = [(x.n, x.layers, x.site, x.feature, x.provenance) for x in (one, other)]
    return facts[0] == facts[1] and all(
        torch.equal(a, b)
        for layer in one.layers
        for a, b in zip(
            (*one.omega(layer, centre=True), *one.means(layer)),
            (*other.omega(layer, centre=True), *other.means(layer)),
            strict=True,
        )
    )


@pytest.mark.model
@pytest.mark.parametrize("n", [6, 20, 40], ids=["activations", "sums of heads", "sums"])
def test_a_list_of_sites_gives_in_one_pass_what_each_site_gives_by_itself(model, passes, n):
    demos = demonstrations(n)
    found = sl.capture(model, demos, site=SITES, **OPTIONS)
    once = len(passes)
    assert list(found) == SITES
    for site in SITES:
        assert same(found[site], sl.capture(model, demos, site=site, **OPTIONS))
    assert len(passes) == 5 * once > 0


@pytest.mark.model
@pytest.mark.parametrize("n", [6, 40], ids=["activations", "sums"])
def test_a_list_of_feature_maps_gives_in_one_pass_what_each_map_gives_by_itself(model, passes, n):
    demos, maps = demonstrations(n), ["identity", "tanh", CUBE]
    found = sl.capture(model, demos, feature=maps, **OPTIONS)
    once = len(passes)
    assert list(found) == ["identity", "tanh", "cube"]
    of_both = sl.capture(model, demos, site=("mlp_out", "z"), feature=maps, **OPTIONS)
    assert len(passes) == 2 * once > 0
    for feature, name in zip(maps, found, strict=True):
        alone = sl.capture(model, demos, feature=feature, **OPTIONS)
        assert same(found[name], alone)
        assert same(of_both["mlp_out"][name], alone)
        assert same(of_both["z"][name], sl.capture(model, demos, site="z", feature=feature, **OPTIONS))


@pytest.mark.model
@pytest.mark.parametrize(
    "options",
    [{"position": "mean"}, {"position": "random", "seed": 3}, {"neutral": "generated", "max_new_tokens": 3}],
    ids=["mean", "random", "generated"],
)
def test_sites_of_one_pass_are_read_as_every_option_says(model, options):
    demos = demonstrations(5)
    found = sl.capture(model, demos, site=["z", "mlp_out"], layers="last-2", **options, **OPTIONS)
    for site, one in found.items():
        assert same(one, sl.capture(model, demos, site=site, layers="last-2", **options, **OPTIONS))


@pytest.mark.model
def test_what_an_edit_is_for_and_where_it_is_read_stay_two_things(model):
    demos = demonstrations(5)
    found = sl.capture(model, demos, site=["mlp_out", "resid_post"], fit_site="hidden_states", **OPTIONS)
    for site, one in found.items():
        assert same(one, sl.capture(model, demos, site=site, fit_site="hidden_states", **OPTIONS))
    with pytest.raises(sl.MismatchError, match="'hidden_states' and site 'z' have activations of different widths"):
        sl.capture(model, demos, site=["mlp_out", "z"], fit_site="hidden_states", **OPTIONS)


@pytest.mark.model
def test_one_capture_serves_every_feature_map_while_it_has_activations(model):
    few, many = (sl.capture(model, demonstrations(n), **OPTIONS) for n in (31, 32))
    for feature in ("tanh", CUBE):
        expected = sl.capture(model, demonstrations(31), feature=feature, **OPTIONS)
        assert same(few.with_feature(feature), expected)
        with pytest.raises(sl.InputError) as told:
            many.with_feature(feature)
        for part in ("sums", "32 demonstrations", "'identity'", "store=", "feature=["):
            assert part in str(told.value)
    assert same(many.with_feature("identity"), many)
    # Two maps that have one name are not one map.
    double = sl.FeatureMap("mine", lambda x: 2 * x, lambda y: y / 2)
    triple = sl.FeatureMap("mine", lambda x: 3 * x, lambda y: y / 3)
    sums = sl.capture(model, demonstrations(40), feature=double, **OPTIONS)
    with pytest.raises(sl.InputError, match="only sums are left"):
        sums.with_feature(triple)


@pytest.mark.model
def test_lists_that_cannot_be_read_are_refused_before_any_pass(model, passes, tmp_path):
    unknown: Any = None
    for options, message in (
        ({"site": []}, "site .*expected at least one"),
        ({"site": ["mlp_out", "nosuch"]}, "unknown site 'nosuch'"),
        ({"site": ["z", "z"]}, "site 'z' is given twice"),
        ({"site": [["z"]]}, r"unknown site \['z'\]"),
        ({"site": unknown}, "site None: expected one, or a list"),
        ({"feature": ()}, "feature .*expected at least one"),
        ({"feature": ["tanh", "nosuch"]}, "unknown feature 'nosuch'"),
        ({"feature": [sl.FEATURE_MAPS["tanh"], "tanh"]}, "feature 'tanh' is given twice"),
        ({"feature": [CUBE, sl.FeatureMap("cube", lambda x: x, lambda y: y)]}, "feature 'cube' is given twice"),
        ({"feature": 3}, "feature 3: expected one, or a list"),
    ):
        with pytest.raises(sl.InputError, match=message):
            sl.capture(model, demonstrations(3), store=tmp_path / "store", **options, **OPTIONS)
    assert not passes
    assert not list(tmp_path.iterdir())


@pytest.mark.model
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_each_site_has_a_store_of_its_own_equal_to_that_of_a_capture_by_itself(
    family, load_tiny, backend, tmp_path, monkeypatch
):
    # The heads of this gemma are twice as wide together as the model is, so that their shards are others.
    monkeypatch.setattr(stores, "FEWEST", 1)
    monkeypatch.setattr(stores, "SHARD_NUMBERS", 7 * 3 * 3 * 32)
    model, demos = load_tiny(family, backend), demonstrations(40)
    found = sl.capture(model, demos, site=["z", "mlp_out"], feature=["identity", "tanh"], store=tmp_path, **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlp_out", "z"]
    for site, of_features in found.items():
        alone = sl.capture(model, demos, site=site, store=tmp_path / "alone" / site, **OPTIONS)
        for path in (tmp_path / "alone" / site).iterdir():
            assert path.read_bytes() == (tmp_path / site / path.name).read_bytes()
        assert same(of_features["identity"], alone)
        assert same(of_features["tanh"], sl.CrossCovariance.load(tmp_path / site, feature="tanh"))
    shards = {site: len(list((tmp_path / site).glob("*.safetensors"))) for site in found}
    assert min(shards.values()) > 2
    assert (shards["z"] == shards["mlp_out"]) == (family == "llama")
