"""Captures that keep activations in a folder: resumed, bounded, and equal to those in memory."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import demonstrations

import sea_lens as sl
from sea_lens.spectral import store as stores

OPTIONS = {"progress": False, "batch_size": 4}


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of a batch or two, so that a few demonstrations make several."""
    monkeypatch.setattr(stores, "FEWEST", 5)
    monkeypatch.setattr(stores, "SHARD_NUMBERS", 0)


@pytest.mark.model
@pytest.mark.parametrize("site", ["mlp_out", "z"])
@pytest.mark.parametrize("n", [20, 40], ids=["fewer than wide", "more than wide"])
def test_a_store_holds_what_memory_would(model, tmp_path, small_shards, site, n):
    demos = demonstrations(n)
    kept = sl.capture(model, demos, site=site, **OPTIONS)
    stored = sl.capture(model, demos, site=site, store=tmp_path / "store", **OPTIONS)
    again = sl.CrossCovariance.load(tmp_path / "store")
    assert len(list((tmp_path / "store").glob("*.safetensors"))) > 2
    for one in (stored, again):
        assert (one.n, one.layers, one.site, one.provenance) == (n, kept.layers, site, kept.provenance)
        for layer in kept.layers:
            torch.testing.assert_close(one.omega(layer), kept.omega(layer), rtol=0, atol=1e-12)
            torch.testing.assert_close(one.means(layer), kept.means(layer), rtol=0, atol=1e-12)
    edits = [sl.fit(one, rank=2) for one in (stored, again)]
    assert edits[0].digest == edits[1].digest


@pytest.mark.model
def test_activations_are_kept_in_the_dtype_of_the_model(load_tiny, backend, tmp_path):
    model = load_tiny("llama", backend)
    covariance = sl.capture(model, demonstrations(5), **OPTIONS)
    covariance.save(tmp_path / "few")
    as_double = 3 * 5 * model.cfg.n_layers * model.cfg.d_model * 8
    assert 0.5 * as_double <= (tmp_path / "few").stat().st_size < 0.5 * as_double + 4096
    again = sl.CrossCovariance.load(tmp_path / "few")
    for layer in covariance.layers:
        assert torch.equal(again.omega(layer)[0], covariance.omega(layer)[0])


@pytest.mark.model
def test_a_capture_goes_on_where_it_was(model, tmp_path, small_shards, monkeypatch):
    demos, read = demonstrations(20), []
    whole = sl.capture(model, demos, store=tmp_path / "whole", **OPTIONS)
    written = stores.Store.write

    def interrupted(store, number, activations):
        if number == 2:
            raise KeyboardInterrupt
        written(store, number, activations)

    monkeypatch.setattr(stores.Store, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sl.capture(model, demos, store=tmp_path / "store", **OPTIONS)
    with pytest.raises(sl.FileError, match=r"the capture has not ended, .* shards are missing"):
        sl.CrossCovariance.load(tmp_path / "store")

    def noted(store, number, activations):
        read.append(number)
        written(store, number, activations)

    monkeypatch.setattr(stores.Store, "write", noted)
    resumed = sl.capture(model, demos, store=tmp_path / "store", **OPTIONS)
    assert read[0] == 2
    assert sl.fit(resumed).digest == sl.fit(whole).digest
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "store").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "store" / name).read_bytes()


@pytest.mark.model
def test_a_store_of_another_capture_is_refused_before_anything_is_read(model, tmp_path):
    demos = demonstrations(6)
    sl.capture(model, demos, store=tmp_path / "store", **OPTIONS)
    for change, message in (
        ({"site": "resid_post"}, "holds another capture: "),
        ({"layers": [0]}, "holds another capture: layers"),
        ({"position": "mean"}, "holds another capture: position"),
        ({"batch_size": 1}, "in other batches"),
    ):
        with pytest.raises(sl.MismatchError, match=message):
            sl.capture(model, demos, store=tmp_path / "store", **{**OPTIONS, **change})
    with pytest.raises(sl.MismatchError, match="holds another capture: demonstrations"):
        sl.capture(model, demonstrations(7), store=tmp_path / "store", **OPTIONS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(sl.FileError, match="something else than a capture"):
        sl.capture(model, demos, store=tmp_path / "other", **OPTIONS)
    (tmp_path / "file").write_text("x")
    with pytest.raises(sl.FileError, match="file"):
        sl.capture(model, demos, store=tmp_path / "file", **OPTIONS)
    with pytest.raises(sl.FileError, match=r"(?i)no such file"):
        sl.CrossCovariance.load(tmp_path / "other")


@pytest.mark.model
def test_a_shard_that_was_changed_lost_or_moved_is_refused(model, tmp_path, small_shards):
    demos = demonstrations(20)
    sl.capture(model, demos, store=tmp_path / "store", **OPTIONS)
    sl.capture(model, demos, store=tmp_path / "others", **{**OPTIONS, "position": "mean"})
    shards = sorted((tmp_path / "store").glob("*.safetensors"))
    first = shards[0].read_bytes()
    for content, message in (
        (first[:-1] + bytes([first[-1] ^ 1]), "damaged"),
        (first[: len(first) // 2], "not a complete safetensors file"),
        (shards[1].read_bytes(), "another capture"),
        ((tmp_path / "others" / shards[0].name).read_bytes(), "another capture"),
    ):
        shards[0].write_bytes(content)
        with pytest.raises(sl.FileError, match=message):
            sl.CrossCovariance.load(tmp_path / "store")
        with pytest.raises(sl.FileError, match=message):
            sl.capture(model, demos, store=tmp_path / "store", **OPTIONS)
    shards[0].write_bytes(first)
    index = tmp_path / "store" / "capture.json"
    index.write_bytes(index.read_bytes().replace(b'"mlp_out"', b'"attn_out"'))
    with pytest.raises(sl.FileError, match="damaged"):
        sl.CrossCovariance.load(tmp_path / "store")


@pytest.mark.model
def test_one_store_serves_every_feature_map(model, tmp_path):
    demos = demonstrations(6)
    sl.capture(model, demos, store=tmp_path / "store", **OPTIONS)
    for feature in sl.FEATURE_MAPS:
        expected = sl.capture(model, demos, feature=feature, **OPTIONS)
        loaded = sl.CrossCovariance.load(tmp_path / "store", feature=feature)
        for one in (loaded, sl.CrossCovariance.load(tmp_path / "store").with_feature(feature)):
            assert one.feature.name == feature
            torch.testing.assert_close(one.omega(1), expected.omega(1), rtol=0, atol=1e-12)
    sums = sl.capture(model, demonstrations(40), **OPTIONS)
    with pytest.raises(sl.InputError, match="capture with store="):
        sums.with_feature("tanh")


@pytest.mark.model
def test_parts_of_two_stores_merge_to_the_whole(model, tmp_path):
    demos = demonstrations(12)
    whole = sl.capture(model, demos, progress=False, batch_size=1)
    parts = [
        sl.capture(model, some, store=tmp_path / str(i), progress=False, batch_size=1)
        for i, some in enumerate((demos[:5], demos[5:]))
    ]
    merged = parts[0] + parts[1]
    for layer in whole.layers:
        found, expected = (one.omega(layer, centre=True) for one in (merged, whole))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


FIT = """
import sys, torch
torch.set_num_threads(1)
import sea_lens as sl
from sea_lens.spectral import store
store.FEWEST, store.SHARD_NUMBERS = 4, 0
bed = sl.testbed.load()
print("ready", flush=True)
covariance = sl.capture(bed.model, bed.demonstrations[:64], store=sys.argv[1], batch_size=4, progress=False)
sl.fit(covariance, rank=4).save(sys.argv[2])
"""


@pytest.mark.skipif(os.name != "posix", reason="a signal that cannot be caught")
def test_a_capture_that_is_killed_is_resumed_to_the_same_bytes(tmp_path):
    command = [sys.executable, "-c", FIT, str(tmp_path / "store"), str(tmp_path / "edit")]
    environment = {**os.environ, "PYTHONPATH": str(Path(sl.__file__).parents[1])}

    def shards():
        return len(list((tmp_path / "store").glob("*.safetensors")))

    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (shards() >= 3) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 3 <= shards() < 16
    assert not (tmp_path / "edit").exists()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    resumed = (tmp_path / "edit").read_bytes()
    shutil.rmtree(tmp_path / "store")
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert (tmp_path / "edit").read_bytes() == resumed
