"""Peak memory of a capture with a store, for more and more demonstrations.

    python timings/capture_memory.py --data qa_data.jsonl --model M [--counts 500 5000]

The demonstrations are those of HaluEval's QA file, each with a number in front, so that there can be as many as are
asked for. Each count is captured in a process of its own. Printed are the most memory that the process held, what it
held before the capture, and the ratio of the peaks to the first.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

CAPTURE = """
import itertools, sys, torch
torch.set_num_threads(1)
import sea_lens as sl
data, model, count, folder = sys.argv[1:]

def most():
    # Of this process alone: what getrusage says counts whatever started it.
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 2**10

loaded = sl.load_model(model, "bridge")
rows = list(sl.Demonstrations.from_halueval(data))
demonstrations = sl.Demonstrations(
    sl.Demonstration(*(f"{i}. {text}" for text in (one.neutral, one.positive, one.negative)))
    for i, one in zip(range(int(count)), itertools.cycle(rows))
)
before = most()
covariance = sl.capture(loaded, demonstrations, store=folder, progress=False)
print(covariance.n, before, most())
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="HaluEval's qa_data.jsonl")
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--model", required=True, help="Hugging Face name or folder")
    given = parser.parse_args()
    first = None
    for count in given.counts:
        with tempfile.TemporaryDirectory() as folder:
            asked = [sys.executable, "-c", CAPTURE, given.data, given.model, count, folder]
            ran = subprocess.run([str(one) for one in asked], check=True, capture_output=True, text=True)
        n, before, most = ran.stdout.split()
        first = float(most) if first is None else first
        print(
            f"{n} demonstrations: {float(most):.0f} MB at most, {float(before):.0f} before; {float(most) / first:.3f}"
        )


if __name__ == "__main__":
    main()
