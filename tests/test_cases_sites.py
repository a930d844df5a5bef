"""Several sites and feature maps from one pass over the demonstrations: the numbers of each by itself."""

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import demonstrations, sentence

import sea_lens as sl
from sea_lens.spectral import store as stores
from sea_lens.spectral.site_stores import whole_shards

SITES = ["mlp_out", "attn_out", "resid_post", "z"]
OPTIONS: dict[str, Any] = {"progress": False, "batch_size": 8}
CUBE = sl.FeatureMap("cube", lambda x: x**3, lambda y: y.sign() * y.abs() ** (1 / 3))


@pytest.fixture
def passes(model):
    """A list that grows by the tokens of every forward pass of the model."""
    # Once a model is checked, which takes passes of its own.
    sl.check_model(model)
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
@pytest.mark.parametrize("n", [6, 20, 33], ids=["activations", "sums of heads", "sums"])
def test_a_list_of_sites_gives_in_one_pass_what_each_site_gives_by_itself(model, passes, n):
    demos = demonstrations(n)
    found = sl.capture(model, demos, site=SITES, **OPTIONS)
    once = len(passes)
    assert list(found) == SITES
    for site in SITES:
        assert same(found[site], sl.capture(model, demos, site=site, **OPTIONS))
    assert len(passes) == 5 * once > 0


@pytest.mark.model
@pytest.mark.parametrize("n", [6, 33], ids=["activations", "sums"])
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
    model, demos, options = load_tiny(family, backend), demonstrations(33), {**OPTIONS, "batch_size": 4}
    found = sl.capture(model, demos, site=["z", "mlp_out"], feature=["identity", "tanh"], store=tmp_path, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlp_out", "z"]
    for site, of_features in found.items():
        alone = sl.capture(model, demos, site=site, store=tmp_path / "alone" / site, **options)
        for path in (tmp_path / "alone" / site).iterdir():
            assert path.read_bytes() == (tmp_path / site / path.name).read_bytes()
        assert same(of_features["identity"], alone)
        assert same(of_features["tanh"], sl.CrossCovariance.load(tmp_path / site, feature="tanh"))
    shards = {site: len(list((tmp_path / site).glob("*.safetensors"))) for site in found}
    assert min(shards.values()) > 2
    assert (shards["z"] == shards["mlp_out"]) == (family == "llama")


@pytest.mark.model
def test_a_capture_of_several_sites_goes_on_where_it_was(model, passes, tmp_path, small_shards, monkeypatch):
    demos, sites = demonstrations(20), ["mlp_out", "z"]
    sl.capture(model, demos, site=sites, store=tmp_path / "whole", **OPTIONS)
    whole, written = len(passes), stores.Store.write

    def interrupted(store, number, activations):
        if (store.site, number) == ("z", 1):
            raise KeyboardInterrupt
        written(store, number, activations)

    monkeypatch.setattr(stores.Store, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sl.capture(model, demos, site=sites, store=tmp_path / "store", **OPTIONS)
    monkeypatch.setattr(stores.Store, "write", written)
    passes.clear()
    # What one site alone lacks is read for it alone, and a site that is asked for later is read anew.
    sl.capture(model, demos, site=sites, store=tmp_path / "store", **OPTIONS)
    assert 0 < len(passes) < whole
    for path in (tmp_path / "whole").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "store" / path.relative_to(tmp_path / "whole")).read_bytes()
    passes.clear()
    sl.capture(model, demos, site=sites, store=tmp_path / "store", **OPTIONS)
    assert not passes
    found = sl.capture(model, demos, site=[*sites, "attn_out"], store=tmp_path / "store", **OPTIONS)
    assert len(passes) == whole
    assert same(found["attn_out"], sl.capture(model, demos, site="attn_out", store=tmp_path / "alone", **OPTIONS))
    shutil.rmtree(tmp_path / "store" / "z")
    assert same(sl.capture(model, demos, site=["z"], store=tmp_path / "store", **OPTIONS)["z"], found["z"])


@pytest.mark.model
def test_a_folder_that_is_none_for_several_sites_is_refused_before_any_pass(model, passes, tmp_path):
    demos = demonstrations(6)
    sl.capture(model, demos, store=tmp_path / "one", **OPTIONS)
    sl.capture(model, demos, site=["z"], store=tmp_path / "several", **OPTIONS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    (tmp_path / "inner" / "z").mkdir(parents=True)
    (tmp_path / "inner" / "z" / "thesis.tex").write_text("x")
    passes.clear()
    for folder, message in (
        ("one", "holds a capture of one site"),
        ("other", "something else than a capture"),
        ("inner", "something else than a capture"),
        ("other/thesis.tex", "is a file"),
    ):
        with pytest.raises(sl.FileError, match=message):
            sl.capture(model, demos, site=["mlp_out", "z"], store=tmp_path / folder, **OPTIONS)
    with pytest.raises(sl.FileError, match="something else than a capture"):
        sl.capture(model, demos, store=tmp_path / "several", **OPTIONS)
    with pytest.raises(sl.FileError, match="holds captures of several sites: expected a folder in it, of z"):
        sl.CrossCovariance.load(tmp_path / "several")
    # Nothing is begun beside a store of another capture.
    with pytest.raises(sl.MismatchError, match=r"z holds another capture: position"):
        sl.capture(model, demos, site=["mlp_out", "z"], position="mean", store=tmp_path / "several", **OPTIONS)
    assert [path.name for path in (tmp_path / "several").iterdir()] == ["z"]
    assert not passes


def test_processes_share_out_what_no_shard_goes_beyond():
    class Cut(stores.Store):
        pass

    one, other = (
        Cut(Path(), {"shards": shards}) for shards in ([[0, 1], [2], [3, 4, 5], [6]], [[0], [1, 2], [3, 4], [5], [6]])
    )
    assert whole_shards([one]) == [[0, 1], [2], [3, 4, 5], [6]]
    assert whole_shards([one, other]) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.fixture
def dev(tmp_path):
    path = tmp_path / "dev.jsonl"
    rows = [
        {"query": sentence(700 + i, 4), "choices": [sentence(50 + i, 1), sentence(90 + i, 1)], "gold": i % 2}
        for i in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sl.Task.read("capability", path)


GRID = {"energies": (0.9,), "centres": (False,), "strengths": (1.0,)}
TRIED = {"site": ["mlp_out", "z"], "features": ("identity", "tanh")}


def of_demonstrations(passes, demos, model):
    """How many of the passes read a prompt of the demonstrations, which no item of the dev split begins with."""
    firsts = {model.to_tokens(demo.neutral)[0, 1:4].tolist().__str__() for demo in demos}
    return sum(any(str(row[row != 0][1:4].tolist()) in firsts for row in tokens) for tokens in passes)


@pytest.mark.model
@pytest.mark.parametrize("n", [12, 33], ids=["activations", "sums"])
@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "in a store"])
def test_tuning_over_sites_and_features_reads_the_demonstrations_once(model, passes, dev, tmp_path, n, kept):
    demos = demonstrations(n)
    sl.capture(model, demos, progress=False)
    once = of_demonstrations(passes, demos, model)
    passes.clear()
    store = tmp_path / "store" if kept else None
    found = sl.tune(model, demos, dev, maximise="accuracy", progress=False, store=store, **GRID, **TRIED)
    assert of_demonstrations(passes, demos, model) == once > 0
    settings = itertools.product(TRIED["site"], TRIED["features"], GRID["energies"], GRID["centres"])
    tried = found.table[["site", "feature", "energy", "centre"]]
    assert list(tried.itertuples(index=False, name=None)) == list(settings)
    chosen = found.table[found.table["chosen"]].iloc[0]
    assert found.edit.site == chosen["site"]
    assert f"site {chosen['site']}, feature {chosen['feature']}" in str(found)


@pytest.mark.model
@pytest.mark.parametrize("n", [12, 33], ids=["activations", "sums"])
def test_every_edit_that_is_tuned_is_that_of_a_capture_and_a_fit_by_hand(model, dev, monkeypatch, n):
    from sea_lens.evaluation import tuning

    demos, tried, fit = demonstrations(n), [], tuning.fit
    monkeypatch.setattr(tuning, "fit", lambda *given, **options: tried.append(fit(*given, **options)) or tried[-1])
    sl.tune(model, demos, dev, maximise="accuracy", progress=False, **GRID, **TRIED)
    captures = {
        (site, feature): sl.capture(model, demos, site=site, feature=feature, progress=False)
        for site, feature in itertools.product(TRIED["site"], TRIED["features"])
    }
    by_hand = [
        sl.fit(covariance, energy=energy, centre=centre)
        for covariance, energy, centre in itertools.product(captures.values(), GRID["energies"], GRID["centres"])
    ]
    assert [edit.digest for edit in tried] == [edit.digest for edit in by_hand]


@pytest.mark.model
def test_a_tuning_over_sites_goes_on_from_its_journal_and_store(model, passes, dev, tmp_path):
    demos, kept = demonstrations(), {"journal": tmp_path / "journal", "store": tmp_path / "store"}
    whole = sl.tune(model, demos, dev, maximise="accuracy", progress=False, **GRID, **TRIED)
    sl.tune(model, demos, dev, maximise="accuracy", progress=False, **kept, **GRID, **TRIED)
    passes.clear()
    again = sl.tune(model, demos, dev, maximise="accuracy", progress=False, **kept, **GRID, **TRIED)
    assert of_demonstrations(passes, demos, model) == 0
    assert again.table.equals(whole.table)
    assert again.edit.digest == whole.edit.digest
    with pytest.raises(sl.MismatchError, match="another tuning"):
        sl.tune(model, demos, dev, maximise="accuracy", progress=False, **kept, **{**GRID, **TRIED, "site": ["z"]})
    again.save(tmp_path)
    assert str(sl.Tuning.load(tmp_path)) == str(again)


@pytest.mark.model
def test_sites_that_cannot_be_tried_are_refused_before_any_pass(model, passes, dev, tmp_path):
    for options, message in (
        ({"site": ["mlp_out", "nosuch"]}, "unknown site 'nosuch'"),
        ({"site": []}, "expected at least one"),
        ({"site": ["z", "z"]}, "given twice"),
    ):
        with pytest.raises(sl.InputError, match=message):
            sl.tune(model, demonstrations(), dev, maximise="accuracy", progress=False, **{**GRID, **options})
    (tmp_path / "store").write_text("x")
    with pytest.raises(sl.FileError, match="is a file"):
        sl.tune(model, demonstrations(), dev, maximise="accuracy", progress=False, store=tmp_path / "store", **GRID)
    assert of_demonstrations(passes, demonstrations(), model) == 0


def test_the_command_tunes_over_sites_and_features(tmp_path, capsys, monkeypatch):
    from sea_lens.cli import main

    bed = sl.testbed.load()
    bed.demonstrations[:24].to_jsonl(tmp_path / "demos.jsonl")
    rows = [{"query": one.prompt, "choices": [one.target, one.foil], "gold": 0} for one in bed.contrasts["dev"][:4]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["tune", "--model", "testbed", "--demonstrations", tmp_path / "demos.jsonl", "--benchmark", "capability"]
    asked += ["--data", tmp_path / "rows.jsonl", "--maximise", "accuracy", "--site", "mlp_out, z", "--features"]
    asked += ["identity,tanh", "--energies", "0.9", "--centre", "no", "--strengths", "1", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["sea-lens", *map(str, asked), "--store", str(tmp_path / "store")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None), capsys.readouterr().err
    table = sl.Tuning.load(tmp_path / "out").table
    assert list(zip(table["site"], table["feature"], strict=True)) == list(
        itertools.product(["mlp_out", "z"], ["identity", "tanh"])
    )
    assert sl.CrossCovariance.load(tmp_path / "store" / "z").site == "z"
