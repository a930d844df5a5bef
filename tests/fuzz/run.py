"""Many mutated files through all loaders, in processes of their own.

    python -m tests.fuzz.run [--inputs 1000000] [--seed 0] [--workers 2] [--seconds 0]

Input number i is a function of the seed and i alone, so that `--only i` does it again. A loader must take a file or
refuse it with one of sea_lens's own errors, within 5 seconds and 500 MB, and what it takes must be possible
(`oracles`). Prints a line for each input that broke this, then counts; ends with 1 if there was any.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

import sea_lens as sl

from .corpus import File, corpus, hostile, tuning
from .loaders import LOADERS
from .mutations import mutated

LONGEST, LARGEST = 5.0, 500 * 2**20
# Inputs that a worker does between two reports.
_BATCH = 500


class Hang(BaseException):
    """An input took longer than `LONGEST`."""


def _hang(*_: object) -> None:
    raise Hang


def input_of(seed: int, number: int, sound: list[File], bombs: list[File]) -> tuple[File, bytes]:
    """The file that input `number` is made of, and its content."""
    if number < len(bombs):
        return bombs[number], bombs[number].content
    rng = random.Random(f"{seed} {number}")
    original = rng.choice(sound)
    return original, mutated(original.content, rng)


def memory() -> int:
    """The largest memory that this process ever had, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Trial:
    """Reads inputs one by one in a folder of its own, and counts what came of them."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self.folder = seed, folder
        self.sound, self.bombs = corpus(), hostile()
        self.counts: Counter[str] = Counter()
        tuning().save(folder)
        for file in self.sound:
            # What every loader needs once, such as imports, is not what an input costs.
            assert self.outcome(file, file.content) == "accepted", file.name
        self.memory = memory()

    def outcome(self, original: File, content: bytes) -> str:
        """What came of an input: "accepted", "refused", or what is wrong."""
        path = self.folder / original.name
        path.write_bytes(content)
        signal.setitimer(signal.ITIMER_REAL, LONGEST)
        try:
            wrong = LOADERS[original.loader](path, original)
        except sl.SeaLensError:
            return "refused"
        except Hang:
            return "hang"
        except Exception as error:
            return f"foreign {type(error).__name__}: {error}"[:300]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            path.unlink(missing_ok=True)
        return "accepted" if wrong is None else f"impossible: {wrong}"

    def input(self, number: int) -> None:
        """Do one input, and tell where it broke a rule."""
        original, content = input_of(self.seed, number, self.sound, self.bombs)
        found = self.outcome(original, content)
        if (grown := memory() - self.memory) > LARGEST:
            found, self.memory = f"memory: {grown / 2**20:.0f} MB", memory()
        self.counts[found if found in ("accepted", "refused") else found.split(":")[0].split()[0]] += 1
        self.counts[f"of {original.loader}"] += 1
        if found not in ("accepted", "refused"):
            print(f"input {number} of seed {self.seed}, {original.name}: {found}", flush=True)


def trial(seed: int, folder: Path) -> Trial:
    """A trial in this process, ready to begin."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _hang)
    return Trial(seed, folder)


def _work(seed: int, start: int, stop: int, step: int, pipe: Connection) -> None:
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        one = trial(seed, Path(folder))
        resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
        for number in range(start, stop, step):
            one.input(number)
            if (number - start) // step % _BATCH == _BATCH - 1 or number + step >= stop:
                pipe.send(dict(one.counts))
                one.counts.clear()
    pipe.close()


def run(inputs: int, seed: int, workers: int, seconds: float = 0) -> Counter[str]:
    """Do inputs 0 to `inputs` − 1, or as many as there is time for, and count what came of them."""
    counts: Counter[str] = Counter()
    context = multiprocessing.get_context("fork")
    pipes, processes = {}, []
    start = time.monotonic()
    for place in range(workers):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(seed, place, inputs, workers, sending), daemon=True)
        process.start()
        sending.close()
        pipes[receiving] = time.monotonic()
        processes.append(process)
    told = start
    while pipes:
        for ready in wait(list(pipes), timeout=5):
            assert isinstance(ready, Connection)
            try:
                counts.update(ready.recv())
                pipes[ready] = time.monotonic()
            except EOFError:
                del pipes[ready]
        now = time.monotonic()
        if any(now - last > LONGEST * _BATCH / 10 for last in pipes.values()):
            counts["hang"] += 1
            break
        if now - told > 30:
            told = now
            print(
                f"{sum(n for name, n in counts.items() if name.startswith('of '))} inputs", file=sys.stderr, flush=True
            )
        if seconds and now - start > seconds:
            break
    for process in processes:
        process.terminate()
        process.join()
    return counts


def main() -> int:
    """Run the fuzzer from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long; 0: when all are done")
    parser.add_argument("--only", type=int, help="do this input alone, and show its content")
    given = parser.parse_args()
    if given.only is not None:
        folder = Path(tempfile.mkdtemp())
        one = trial(given.seed, folder)
        print(input_of(given.seed, given.only, one.sound, one.bombs))
        one.input(given.only)
        shutil.rmtree(folder)
        counts = one.counts
    else:
        counts = run(given.inputs, given.seed, given.workers, given.seconds)
    done = sum(n for name, n in counts.items() if name.startswith("of "))
    print(json.dumps({"inputs": done, **dict(sorted(counts.items()))}, indent=1))
    broken = {name for name in counts if not name.startswith("of ")} - {"accepted", "refused"}
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
