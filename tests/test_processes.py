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


def command(*arguments, processes=2, what=("-m", "sea_lens")):
    """The command line that runs `sea-lens`, or a script, in so many processes."""
    started = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes] if processes > 1 else []
    return [sys.executable, *map(str, (*started, *what, *arguments))]


def run(*arguments):
    return subprocess.run(command(*arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


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


# Runs several commands one after the other, in processes that join once: what takes time is to start them.
COMMANDS = """
import json
import sys
from pathlib import Path
from sea_lens._support import processes
from sea_lens.cli import main

processes.start()
processes.start = lambda: None
printed = sys.stdout
for arguments in json.loads(Path(sys.argv[1]).read_text()):
    sys.argv, sys.stdout = ["sea-lens", *arguments], printed
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""
FITS = {
    f"{file}{' in a store' if store else ''}": (file, store)
    for file in ("demos.jsonl", "many.jsonl")
    for store in (False, True)
}


def commands(given, out):
    """The commands that are compared, by what they write into `out`."""
    model, edit = ["--model", "testbed"], ["--edit", given / "edit.safetensors"]
    contrasts = ["--contrasts", given / "contrasts.jsonl", "--batch-size", "2"]
    capability = ["--benchmark", "capability", "--data", given / "rows.jsonl"]
    asked = {}
    for name, (file, store) in FITS.items():
        kept = ["--store", out / name / "store"] if store else []
        fit = ["fit", *model, "--demonstrations", given / file, "--rank", "3", "--batch-size", "4"]
        asked[name] = [*fit, *kept, "--out", out / name / "edit.safetensors"]
    asked["evaluate"] = ["evaluate", *model, *edit, *capability, "--out", out / "evaluate" / "scores.json"]
    methods = ["--methods", "layers_path,layers_only_one,heads_gradient"]
    asked["attribute"] = ["attribute", *model, *edit, *contrasts, *methods, "--out", out / "attribute"]
    asked["effect"] = ["effect", *model, *edit, *contrasts, "--out", out / "effect" / "effect.json"]
    tune = ["tune", *model, "--demonstrations", given / "demos.jsonl", *capability, "--maximise", "accuracy"]
    asked["tune"] = [*tune, "--energies", "0.9,0.99", "--limit", "60", "--out", out / "tune" / "edit.safetensors"]
    return {name: list(map(str, arguments)) for name, arguments in asked.items()}


@pytest.fixture(scope="module")
def ran(given, tmp_path_factory):
    """What one process has written and what two have: a folder for each command, in one folder for each number."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "commands.py").write_text(COMMANDS)
    for n in (1, 2):
        asked = commands(given, folder / str(n))
        for name in asked:
            (folder / str(n) / name).mkdir(parents=True)
        (folder / f"{n}.json").write_text(json.dumps(list(asked.values())))
        done = subprocess.run(
            command(folder / f"{n}.json", processes=n, what=[folder / "commands.py"]),
            env=ENVIRONMENT, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        # One says it, each time.
        assert done.stdout.count("wrote") == len(asked)
    return folder


@pytest.mark.parametrize("name", FITS)
def test_two_processes_fit_what_one_fits(ran, name):
    if name == "many.jsonl":
        # Sums are added up in another order.
        one, two = (sl.SpectralEdit.load(ran / str(n) / name / "edit.safetensors") for n in (1, 2))
        assert one.ranks == two.ranks
        for layer in one.layers:
            for a, b in zip(one.projections(layer), two.projections(layer), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    else:
        assert contents(ran / "1" / name) == contents(ran / "2" / name) != {}


@pytest.mark.parametrize("name", ["evaluate", "effect", "tune"])
def test_two_processes_write_the_bytes_of_one(ran, name):
    assert contents(ran / "1" / name) == contents(ran / "2" / name) != {}


def test_two_processes_attribute_what_one_does(ran):
    one, two = ran / "1" / "attribute", ran / "2" / "attribute"
    assert contents(one).keys() == contents(two).keys()
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (one, two))
    assert _rounded(first) == _rounded(second)


def test_torchrun_runs_the_command(ran, given, tmp_path):
    asked = ["fit", "--model", "testbed", "--demonstrations", given / "demos.jsonl", "--rank", "3", "--batch-size", "4"]
    done = run(*asked, "--out", tmp_path / "edit.safetensors")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1
    assert contents(tmp_path) == contents(ran / "1" / "demos.jsonl")


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
