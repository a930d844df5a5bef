"""Commands that `torchrun` runs in two processes give what one gives, and end together."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import sea_lens as sl
from sea_lens._support import processes

PACKAGE = str(Path(sl.__file__).parents[1])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1", "TORCHELASTIC_ERROR_FILE": ""}

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="a torch without processes")


def command(*arguments, processes=2):
    """The command line that runs `sea-lens` in so many processes."""
    if processes == 1:
        return [sys.executable, "-m", "sea_lens", *map(str, arguments)]
    started = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *started, "-m", "sea_lens", *map(str, arguments)]


def run(*arguments, processes=2):
    return subprocess.run(
        command(*arguments, processes=processes), env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Files of demonstrations, contrasts and rows of the shipped model's world, and an edit."""
    folder, bed = tmp_path_factory.mktemp("given"), sl.testbed.load()
    demonstrations, contrasts = list(bed.demonstrations)[:40], list(bed.contrasts["dev"])[:12]
    sl.Demonstrations(demonstrations).to_jsonl(folder / "demos.jsonl")
    sl.Demonstrations(list(bed.demonstrations)[:140]).to_jsonl(folder / "many.jsonl")
    sl.Contrasts(contrasts).to_jsonl(folder / "contrasts.jsonl")
    rows = [{"query": one.prompt, "choices": [one.target, one.foil], "gold": 0} for one in contrasts * 9]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sl.fit(sl.capture(bed.model, demonstrations, progress=False), rank=3).save(folder / "edit.safetensors")
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("file", ["demos.jsonl", "many.jsonl"], ids=["activations", "sums"])
@pytest.mark.parametrize("store", [False, True], ids=["in memory", "in a store"])
def test_two_processes_fit_what_one_fits(given, tmp_path, file, store):
    found = {}
    for n in (1, 2):
        (tmp_path / str(n)).mkdir()
        kept = ["--store", tmp_path / str(n) / "store"] if store else []
        asked = ["fit", "--model", "testbed", "--demonstrations", given / file, "--rank", "3", "--batch-size", "4"]
        ran = run(*asked, *kept, "--out", tmp_path / str(n) / "edit.safetensors", processes=n)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("wrote") == 1
        found[n] = contents(tmp_path / str(n))
    if file == "many.jsonl" and not store:
        # Sums are added up in another order.
        one, two = (sl.SpectralEdit.load(tmp_path / str(n) / "edit.safetensors") for n in (1, 2))
        assert one.ranks == two.ranks
        for layer in one.layers:
            for a, b in zip(one.projections(layer), two.projections(layer), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    else:
        assert found[1] == found[2]


def test_two_processes_evaluate_what_one_does_and_write_it_once(given, tmp_path):
    for n in (1, 2):
        asked = ["evaluate", "--model", "testbed", "--edit", given / "edit.safetensors", "--benchmark", "capability"]
        ran = run(*asked, "--data", given / "rows.jsonl", "--out", tmp_path / f"{n}.json", processes=n)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("wrote") == 1
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.json", "2.json"]


def test_two_processes_attribute_what_one_does(given, tmp_path):
    numbers = {}
    for n in (1, 2):
        asked = ["attribute", "--model", "testbed", "--edit", given / "edit.safetensors", "--batch-size", "2"]
        asked += ["--contrasts", given / "contrasts.jsonl", "--methods", "layers_path,layers_only_one,heads_gradient"]
        ran = run(*asked, "--out", tmp_path / str(n), processes=n)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("wrote") == 1
        numbers[n] = json.loads((tmp_path / str(n) / "results.json").read_text())
    assert contents(tmp_path / "1").keys() == contents(tmp_path / "2").keys()
    assert _rounded(numbers[1]) == _rounded(numbers[2])


def test_two_processes_measure_effects_and_tune_as_one_does(given, tmp_path):
    asked = {
        "effect": ["--edit", given / "edit.safetensors", "--contrasts", given / "contrasts.jsonl", "--batch-size", "2"],
        "tune": [
            *("--demonstrations", given / "demos.jsonl", "--benchmark", "capability", "--data", given / "rows.jsonl"),
            *("--maximise", "accuracy", "--energies", "0.9,0.99", "--limit", "60"),
        ],
    }
    for name, options in asked.items():
        for n in (1, 2):
            ran = run(name, "--model", "testbed", *options, "--out", tmp_path / f"{name}{n}", processes=n)
            assert ran.returncode == 0, ran.stderr
            assert ran.stdout.count("wrote") == 1
        assert contents(tmp_path / f"{name}1") == contents(tmp_path / f"{name}2") != {}


def _rounded(content):
    if isinstance(content, dict):
        return {name: _rounded(one) for name, one in content.items()}
    if isinstance(content, list):
        return [_rounded(one) for one in content]
    return round(content, 9) if isinstance(content, float) else content


def test_what_the_user_got_wrong_is_said_once(given, tmp_path):
    ran = run("fit", "--model", "testbed", "--demonstrations", given / "nosuch.jsonl", "--out", tmp_path / "edit")
    assert ran.returncode != 0
    assert ran.stderr.count("sea-lens: --demonstrations") == 1
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_killed_ends_all_with_one_error(given, tmp_path):
    asked = ["fit", "--model", "testbed", "--demonstrations", given / "many.jsonl", "--batch-size", "1"]
    started = subprocess.Popen(
        command(*asked, "--store", tmp_path / "store", "--out", tmp_path / "edit"),
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    killed = []

    def kill():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed:
            time.sleep(0.01)
            if not (tmp_path / "store" / "capture.json").exists():
                continue
            children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
            workers = [int(pid) for pid in children if b"sea_lens" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            if len(workers) == 2:
                os.kill(workers[1], signal.SIGKILL)
                killed.append(workers[1])

    thread = threading.Thread(target=kill)
    thread.start()
    _, told = started.communicate(timeout=200)
    thread.join()
    assert killed
    assert started.returncode != 0
    # The other one says so, unless torchrun has ended it before; torchrun names the one that was killed.
    assert told.count("sea-lens: ") <= 1, told
    assert "SIGKILL" in told
    assert "Traceback (most recent call last)" not in told.split("torch/distributed/elastic")[0]
    assert not (tmp_path / "edit").exists()


def test_without_torchrun_there_is_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    processes.start()
    assert processes.count() == 1
    assert processes.is_first()
    assert processes.mine(range(5)) == range(5)
    assert processes.shared(range(3), lambda part: part * 2) == [0, 2, 4]
    assert processes.of_first(lambda: "found") == "found"


@pytest.mark.parametrize(
    "given",
    [{"RANK": "0", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}],
)
def test_variables_that_torchrun_does_not_set_are_refused(monkeypatch, given):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(sl.InputError, match="variables of torchrun"):
        processes.start()
