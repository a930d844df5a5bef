import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest
from tiny import N_LAYERS, contrasts, fitted

pytestmark = pytest.mark.model
ANALYSES = Path(__file__).parents[1] / "analyses"


@pytest.mark.parametrize(("name", "rows"), [("layers", 2 * N_LAYERS), ("heads", 4 * N_LAYERS + 4 * N_LAYERS)])
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
