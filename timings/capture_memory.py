"""Peak memory of a capture with a store, for more and more demonstrations.

    python timings/capture_memory.py [--data qa_data.jsonl] [--model M] [--counts 500 5000]

The demonstrations are those of HaluEval's QA file, each with a number in front, so that there can be as many as are
asked for. Without a model, a random Llama of 4 layers and width 256 reads them. Each count is captured in a process of
its own. Printed are the ratios of the peaks to the first, the most memory that each process held, and what it held
before the capture.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import DATA, Table, random_llama

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
    parser.add_argument(
        "--data", type=Path, default=DATA / "halueval" / "qa_data.jsonl", help="HaluEval's qa_data.jsonl"
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--model", help="Hugging Face name or folder; a random Llama by default")
    Table.add_option(parser)
    given = parser.parse_args()
    table, first = Table(given.json), None
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or str(Path(folder) / "model")
        if not given.model:
            random_llama(model, [given.data.read_text(encoding="utf-8")], 4, 256, 4, vocabulary=4000)
        for count in given.counts:
            asked = [sys.executable, "-c", CAPTURE, given.data, model, count, Path(folder) / f"store{count}"]
            ran = subprocess.run([str(one) for one in asked], check=True, capture_output=True, text=True)
            n, before, most = ran.stdout.split()
            note = f"{float(most):.0f} MB at most, {float(before):.0f} before the capture"
            if first is None:
                first = float(most)
                print(f"{n} demonstrations: {note}")
            else:
                what = f"capture with a store: peak memory, {n} / {given.counts[0]} demonstrations"
                table.number(what, float(most) / first, "at most 1.05", note)


if __name__ == "__main__":
    main()
