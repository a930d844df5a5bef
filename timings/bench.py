"""Every measurement with a bar, one after the other, as one table (`make bench`).

    python timings/bench.py [--only fit edit …] [--data ../shared/data] [--out docs/timings]

Each script runs in a process of its own, on one thread, and writes its rows; they are gathered, with the machine that
they were measured on, as JSON and as a Markdown table that the documentation includes. A script that fails, or whose
data is not there, is named in the table: nothing is left out in silence. Rows that were measured before stay where a
script is not run again. The whole takes about an hour on two quiet cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import DATA, Row, machine

HERE = Path(__file__).parent
# By name: the script, its arguments, and the data that it reads.
MEASURED: dict[str, tuple[str, list[str], str | None]] = {
    "fit": ("fit.py", ["--sizes", "2048x1000", "--decays", "1.0", "0.6", "0.5", "--rounds", "5"], None),
    "fit, wider": ("fit.py", ["--sizes", "4096x2000", "--decays", "1.0", "0.7", "--rounds", "1"], None),
    "fit from a store": ("fit.py", ["--store"], None),
    "capture": ("capture.py", ["--batch-sizes", "16"], "halueval/qa_data.jsonl"),
    "capture, bridge": ("capture.py", ["--batch-sizes", "16", "--backend", "bridge"], "halueval/qa_data.jsonl"),
    "capture with passages": ("capture.py", ["--batch-sizes", "16", "--knowledge"], "halueval/qa_data.jsonl"),
    "capture with a store": ("capture_memory.py", [], "halueval/qa_data.jsonl"),
    "scoring": ("unembedding.py", [], "truthfulqa/mc_task.json"),
    "edit": ("edit.py", [], None),
    "edit, bridge": ("edit.py", ["--backend", "bridge"], None),
    "generation": ("generate.py", ["--ranks", "8", "--rounds", "25"], None),
    "generation, bridge": ("generate.py", ["--ranks", "8", "--rounds", "25", "--backend", "bridge"], None),
    "loading": ("load_memory.py", [], None),
    "contributions": ("contributions.py", ["--layers", "8", "--repeats", "9"], None),
    "attention": ("attention.py", [], None),
    "processes": ("processes.py", [], "halueval/qa_data.jsonl"),
    "growth": ("growth.py", [], None),
}


def run(name: str, data: Path) -> dict[str, Any]:
    """What one script found, or why it did not run."""
    script, arguments, needs = MEASURED[name]
    found: dict[str, Any] = {"command": " ".join(["python", f"timings/{script}", *arguments]), "rows": []}
    if needs and not (data / needs).exists():
        return found | {"failed": f"not run: {needs} is not there"}
    given = [*arguments, *(["--data", str(data if script == "processes.py" else data / needs)] if needs else [])]
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        done = subprocess.run(
            [sys.executable, str(HERE / script), *given, "--json", str(rows)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        if rows.exists():
            found["rows"] = json.loads(rows.read_text(encoding="utf-8"))
    if done.returncode:
        found["failed"] = f"failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}"
    return found | {"machine": machine()}


def markdown(found: dict[str, Any]) -> str:
    """The table."""
    lines = ["| what | median | quartiles | wanted | holds | |", "|---|---|---|---|---|---|"]
    machines = {json.dumps(one["machine"]) for one in found.values() if "machine" in one}
    for name, one in found.items():
        if "failed" in one:
            lines.append(f"| {name} | | | | | {one['failed']} |")
        for row in (Row(**row) for row in one["rows"]):
            spread = "" if row.low is None else f"{row.low:.3g} to {row.high:.3g}"
            holds = {None: "", True: "yes", False: "**no**"}[row.holds]
            lines.append(f"| {row.what} | {row.value:.3g} | {spread} | {row.wanted} | {holds} | {row.note} |")
    about = [", ".join(f"{key} {value}" for key, value in json.loads(one).items()) for one in sorted(machines)]
    return "\n".join(
        [
            "<!-- written by timings/bench.py -->",
            "Measured on: " + "; ".join(about) + ".",
            "",
            *lines,
            "",
            "Commands:",
            "",
            *(f"- {name}: `{one['command']}`" for name, one in found.items()),
            "",
        ]
    )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=MEASURED, default=list(MEASURED))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "timings", help="without its ending")
    given = parser.parse_args()
    written = given.out.with_suffix(".json")
    before = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    for name in given.only:
        print(f"--- {name}", flush=True)
        before[name] = run(name, given.data)
        found = {name: before[name] for name in MEASURED if name in before}
        written.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        given.out.with_suffix(".md").write_text(markdown(found), encoding="utf-8")


if __name__ == "__main__":
    main()
