"""Kills `evaluate`, `tune`, `attribute` and `fit` at random moments (kill -9), and compares resumed with whole runs.

    python timings/kills.py [--kills 20] [--seed 0] [--small]

Each command runs in a process forked from this one, which has imported everything, so that the moments fall into the
work and the writing and not into imports. A run is killed once, some runs several times in a row. Prints, for each
command, how many resumed runs ended with the bytes of the whole run, and how many left a file behind.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import sea_lens as sl
from sea_lens.cli import main
from sea_lens.evaluation import run
from sea_lens.spectral import store


def command(arguments: list[str], wait: float | None = None) -> float | None:
    """Run a command in a process of its own, and kill it after a while: the seconds it took, None where killed."""
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 1)
        sys.argv = ["sea-lens", *arguments]
        try:
            main()
        except SystemExit as stopped:
            sys.stdout.flush()
            os._exit(int(stopped.code or 0))
        os._exit(1)
    if wait is not None:
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return None
    if os.WEXITSTATUS(status) != 0:
        raise SystemExit(f"{' '.join(arguments)} ended with {os.WEXITSTATUS(status)}")
    return time.perf_counter() - start


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def work(folder: Path, small: bool) -> dict[str, list[str]]:
    """Inputs of the commands, and their arguments but for where they write."""
    bed = sl.testbed.load()
    demonstrations = sl.Demonstrations(list(bed.demonstrations)[: 16 if small else 64])
    contrasts = sl.Contrasts(list(bed.contrasts["dev"])[: 3 if small else 12])
    demonstrations.to_jsonl(folder / "demos.jsonl")
    contrasts.to_jsonl(folder / "contrasts.jsonl")
    sl.fit(sl.capture(bed.model, demonstrations, progress=False), rank=3).save(folder / "edit.safetensors")
    rows = [
        {"query": one.prompt, "choices": [one.target, one.foil], "gold": 0}
        for one in list(bed.contrasts["dev"])[: 12 if small else 96]
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    demos, edit, data = (str(folder / name) for name in ("demos.jsonl", "edit.safetensors", "rows.jsonl"))
    common = ["--model", "testbed"]
    asked = ["--benchmark", "capability", "--data", data]
    methods = ["--methods", "layers_path,layers_only_one,directions_path,heads_gradient"] if small else []
    draws = ["--control-draws", "1" if small else "2"]
    study = ["--edit", edit, "--contrasts", str(folder / "contrasts.jsonl"), "--demonstrations", demos]
    return {
        "evaluate": ["evaluate", *common, "--edit", edit, *asked],
        "tune": [
            "tune",
            *common,
            "--demonstrations",
            demos,
            *asked,
            "--maximise",
            "accuracy",
            "--energies",
            "0.9,0.99",
        ],
        "attribute": ["attribute", *common, *study, *draws, *methods],
        "fit": ["fit", *common, "--demonstrations", demos, "--rank", "4", "--batch-size", "4"],
    }


def killed(name: str, arguments: list[str], folder: Path, kills: int, generator: random.Random) -> dict[str, int]:
    """How a command that is killed at random moments ends."""

    def out(run: str) -> list[str]:
        place = folder / name / run
        place.mkdir(parents=True)
        if name == "fit":
            return [*arguments, "--store", str(place / "store"), "--out", str(place / "edit.safetensors")]
        return [*arguments, "--out", str(place / "found.json" if name == "evaluate" else place)]

    lasted = command(out("whole"))
    assert lasted is not None
    whole = content(folder / name / "whole")
    told = {"kills": 0, "resumed runs": 0, "byte-equal": 0, "with files left behind": 0}
    while told["kills"] < kills:
        again = out(f"run{told['resumed runs']}")
        # Until it is not killed: a second and a third kill may fall on what the first has left.
        while told["kills"] < kills:
            ended = command(again, generator.uniform(0, 1.1 * lasted))
            told["kills"] += ended is None
            if generator.random() < 0.6:
                break
        command(again)
        found = content(Path(again[-1]) if name in ("tune", "attribute") else Path(again[-1]).parent)
        told["resumed runs"] += 1
        told["byte-equal"] += all(found.get(file) == made for file, made in whole.items())
        told["with files left behind"] += bool(found.keys() - whole.keys())
    return told


def report(kills: int, seed: int, small: bool) -> Iterator[tuple[str, dict[str, int]]]:
    """What `killed` finds for each command, as soon as it has."""
    torch.set_num_threads(1)
    # Parts of a few items, so that a short run has several.
    run.PART = 3 if small else 8
    store.FEWEST, store.SHARD_NUMBERS = 4, 0
    with tempfile.TemporaryDirectory() as folder:
        generator = random.Random(seed)
        commands = work(Path(folder), small)
        for name, given in commands.items():
            yield name, killed(name, given, Path(folder), kills, generator)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="the short form that the tests run")
    given = parser.parse_args()
    for name, told in report(given.kills, given.seed, given.small):
        print(f"{name}: " + ", ".join(f"{value} {what}" for what, value in told.items()), flush=True)
