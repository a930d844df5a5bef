"""What the measurements share, and that the table in the documentation is the one that was measured."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(ROOT / "timings"))
    try:
        yield runpy.run_path(str(ROOT / "timings" / "bench.py"))
    finally:
        sys.path.remove(str(ROOT / "timings"))


def test_a_row_says_whether_its_bar_holds(bench):
    row = bench["Row"]
    assert row("fit", 12.0, wanted="at least 10").holds
    assert row("memory", 1.06, wanted="at most 1.05").holds is False
    assert "DOES NOT HOLD" in str(row("memory", 1.06, wanted="at most 1.05"))
    assert row("growth", 1.9).holds is None


def test_the_table_names_what_failed_and_what_does_not_hold(bench):
    found = {
        "fit": {
            "command": "python timings/fit.py",
            "machine": {"processor": "one"},
            "rows": [
                {"what": "fit / release", "value": 9.0, "low": 8.0, "high": 9.5, "wanted": "at least 10", "note": ""}
            ],
        },
        "capture": {"command": "python timings/capture.py", "rows": [], "failed": "not run: no data"},
    }
    table = bench["markdown"](found)
    assert "| fit / release | 9 | 8 to 9.5 | at least 10 | **no** |  |" in table
    assert "| capture | | | | | not run: no data |" in table


def test_the_table_in_the_documentation_is_what_was_measured(bench):
    measured = json.loads((ROOT / "docs" / "timings.json").read_text(encoding="utf-8"))
    assert measured
    assert (ROOT / "docs" / "timings.md").read_text(encoding="utf-8") == bench["markdown"](measured)


def test_a_script_without_its_data_is_named(bench, tmp_path):
    assert "not there" in bench["run"]("capture", tmp_path)["failed"]


def test_the_page_of_the_whole_job_is_what_was_measured(bench):
    written = [str(path) for path in sorted((ROOT / "docs").glob("whole_job_*.json"))]
    asked = [sys.executable, str(ROOT / "timings" / "whole_job.py"), "--table", *written]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "whole_job.md").read_text(encoding="utf-8") == done.stdout


@pytest.mark.model
def test_the_whole_job_runs_on_a_model_of_no_size(tmp_path):
    halueval = tmp_path / "halueval"
    truthfulqa = tmp_path / "truthfulqa"
    halueval.mkdir()
    truthfulqa.mkdir()
    rows = [
        {
            "knowledge": "none",
            "question": f"what is {i} and {i}?",
            "right_answer": f"yes {2 * i}",
            "hallucinated_answer": f"no {i}",
        }
        for i in range(8)
    ]
    (halueval / "qa_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = [
        {
            "question": f"what is {i}?",
            "mc1_targets": {"a number": 1, "a colour": 0},
            "mc2_targets": {"a number": 1, "a colour": 0},
        }
        for i in range(2)
    ]
    (truthfulqa / "mc_task.json").write_text(json.dumps(items))
    asked = ["--shape", "tiny", "--dtype", "float32", "--threads", "1", "--demonstrations", "8", "--contrasts", "2"]
    asked += ["--questions", "1", "--new-tokens", "2", "--data", str(tmp_path), "--out", str(tmp_path / "found.json")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "timings" / "whole_job.py"), *asked], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    steps = {step["name"]: step for step in json.loads((tmp_path / "found.json").read_text())["steps"]}
    assert list(steps) == [
        "load",
        "capture",
        "fit",
        "effect",
        "path (layers)",
        "direct (heads)",
        "gradient (heads)",
        "evaluate",
        "generate",
    ]
    assert steps["generate"]["passes"] == 2
    assert steps["fit"]["passes"] == 0 < steps["effect"]["tokens"]
