"""What it costs to start: fresh processes, as ratios to `import torch` within one run.

    python timings/start.py [--rounds 9]

Importing torch alone, importing sea_lens, the command line's help, and a command that needs no model (`inspect` of an
edit that this script fits and saves) take turns, after one round that warms the disk. Each ratio is the median over
rounds, with its quartiles. The environment is passed on, so PYTHONPATH says which sea_lens is measured.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import sea_lens as sl

LAYERS, WIDTH, RANK = 6, 256, 8


def save_edit(path: Path) -> None:
    """Save an edit fitted on random activations."""
    generator = torch.Generator().manual_seed(0)
    shape = (100, LAYERS, WIDTH)
    neutral, positive, negative = (torch.randn(shape, generator=generator) for _ in range(3))
    sl.fit_activations(neutral, positive, negative, rank=RANK).save(path)


def run(arguments: Sequence[str], folder: Path) -> str:
    """What a fresh Python prints, run in a folder that holds no sea_lens of its own.

    Raises:
        SystemExit: it failed.
    """
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"python {' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout


def seconds(arguments: Sequence[str], folder: Path) -> float:
    """Wall time of a fresh Python from its start to its end."""
    start = time.perf_counter()
    run(arguments, folder)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    if rounds < 2:
        parser.error("expected at least 2 rounds")
    torch.set_num_threads(1)
    commands = {
        "import torch": ["-c", "import torch"],
        "import sea_lens": ["-c", "import sea_lens"],
        "sea-lens --help": ["-m", "sea_lens", "--help"],
        "sea-lens inspect": ["-m", "sea_lens", "inspect", "edit.safetensors"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_edit(folder / "edit.safetensors")
        measured = run(["-c", "import sea_lens; print(sea_lens.__file__)"], folder).strip()
        if Path(measured).resolve() != Path(sl.__file__).resolve():
            raise SystemExit(f"a fresh process imports {measured}, this one {sl.__file__}: make PYTHONPATH absolute")
        for arguments in commands.values():
            run(arguments, folder)
        for _ in range(rounds):
            for name, arguments in commands.items():
                times[name].append(seconds(arguments, folder))

    print(f"sea_lens in {Path(measured).parent}, {rounds} rounds")
    print(f"{'':18}{'seconds':>8}   ratio to import torch [quartiles]")
    for name, taken in times.items():
        ratios = [one / torch_alone for one, torch_alone in zip(taken, times["import torch"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name:18}{statistics.median(taken):8.2f}   {middle:.2f} [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    main()
