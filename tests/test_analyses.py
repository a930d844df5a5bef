import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest
from tiny import N_LAYERS, contrasts, fitted

from sea_lens.testbed.circuits import CIRCUITS

pytestmark = pytest.mark.model
ANALYSES = Path(__file__).parents[1] / "analyses"


@pytest.mark.parametrize(
    ("name", "rows"),
    [("layers", 4 * N_LAYERS), ("heads", 4 * 4 * N_LAYERS + 4 * N_LAYERS), ("directions", (3 + 2 + 1) * N_LAYERS)],
)
def test_an_analysis_writes_a_table_and_a_figure(name, rows, model_folders, load_tiny, tmp_path, monkeypatch):
    fitted(load_tiny()).save(tmp_path / "edit.safetensors")
    contrasts().to_jsonl(tmp_path / "contrasts.jsonl")
    arguments = {
        "--model": model_folders["llama"],
        "--edit": tmp_path / "edit.safetensors",
        "--contrasts": tmp_path / "contrasts.jsonl",
        "--out": tmp_path / "out",
    }
    monkeypatch.setattr(sys, "argv", [name, *(str(part) for pair in arguments.items() for part in pair)])
    monkeypatch.syspath_prepend(str(ANALYSES))
    runpy.run_path(str(ANALYSES / f"{name}.py"), run_name="__main__")
    assert len(pd.read_csv(tmp_path / "out" / f"{name}.csv")) == rows
    assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5000


def test_the_edit_that_knows_every_answer_does_more_than_the_fitted_one(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["separability"])
    runpy.run_path(str(ANALYSES / "separability.py"), run_name="__main__")
    *layers, fitted_one, informed = capsys.readouterr().out.strip().splitlines()
    assert [line.split(":")[0] for line in layers] == ["layer 0", "layer 1", "layer 2"]
    fitted_effect, informed_effect = (float(line.split("effect ")[1].split()[0]) for line in (fitted_one, informed))
    assert informed_effect > fitted_effect > 0


def test_the_planted_circuits_are_all_found(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["planted"])
    circuits = {name: CIRCUITS[name] for name in ("direct", "edited_head")}
    monkeypatch.setattr("sea_lens.testbed.circuits.CIRCUITS", circuits)
    runpy.run_path(str(ANALYSES / "planted.py"), run_name="__main__")
    header, *rows = capsys.readouterr().out.strip().splitlines()
    assert header.split()[-2:] == ["planted", "others"]
    assert len(rows) == 2 * 9 + 3
    assert max(float(number) for row in rows for number in row.split()[-2:]) < 0.01
