"""Wall time of two processes over that of one, and whether they write the same.

    python timings/processes.py [--data ../shared/data] [--demonstrations 200] [--questions 128]

`sea-lens fit` and `sea-lens evaluate` run on a random Llama, alone and with `torchrun --nproc-per-node 2`, each process
on one thread. What a process needs before its work begins (imports, loading, the model check) is measured by a run over
next to nothing, since it is the same for one process and for two; the share of the wall time is given with and without
it. Two processes need two cores that nothing else uses; `evaluate` shares out parts of 64 items.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import DATA, Table, random_llama

import sea_lens as sl

ALONE = [sys.executable, "-m", "sea_lens"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sea_lens"]


def seconds(command: list[str]) -> float:
    """Wall time of a command."""
    start = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of HaluEval and TruthfulQA")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--demonstrations", type=int, default=200)
    parser.add_argument("--questions", type=int, default=128)
    Table.add_option(parser)
    given = parser.parse_args()
    table = Table(given.json)
    rows = list(sl.Demonstrations.from_halueval(given.data / "halueval" / "qa_data.jsonl"))
    texts = [text for one in rows for text in (one.positive, one.negative)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_llama(folder / "model", texts, given.layers, given.width, 8)
        many = [rows[i % len(rows)] for i in range(given.demonstrations)]
        sl.Demonstrations(
            sl.Demonstration(*(f"{i}. {text}" for text in (one.neutral, one.positive, one.negative)))
            for i, one in enumerate(many)
        ).to_jsonl(folder / "demonstrations.jsonl")
        model = ["--model", str(folder / "model"), "--backend", "bridge"]
        fit = ["fit", *model, "--demonstrations", str(folder / "demonstrations.jsonl")]
        questions = str(given.data / "truthfulqa" / "mc_task.json")
        evaluate = ["evaluate", *model, "--benchmark", "truthfulqa", "--data", questions]
        for what, command, whole, less in (
            ("fit", fit, ["--limit", str(given.demonstrations)], ["--limit", "4"]),
            ("evaluate", evaluate, ["--limit", str(given.questions)], ["--limit", "2"]),
        ):
            taken, written = {}, {}
            for number, way in ((1, ALONE), (2, TWO)):
                for name, limit in (("whole", whole), ("less", less)):
                    out = folder / f"{what}{number}{name}"
                    taken[number, name] = seconds([*way, *command, *limit, "--out", str(out)])
                    written[number, name] = out.read_bytes()
            equal = written[1, "whole"] == written[2, "whole"]
            work = [taken[number, "whole"] - taken[number, "less"] for number in (1, 2)]
            note = f"what they write is {'' if equal else 'NOT '}byte-equal; one process {taken[1, 'whole']:.0f} s"
            share = work[1] / work[0]
            table.number(f"{what}, two processes: wall time / one, without start-up", share, "at most 0.6", note)
            table.number(f"{what}, two processes: wall time / one", taken[2, "whole"] / taken[1, "whole"])


if __name__ == "__main__":
    main()
