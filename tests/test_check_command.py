import json
import sys

import pytest
from test_cli import run  # noqa: F401
from tiny import save_tiny_model
from transformers import AutoTokenizer

pytestmark = pytest.mark.model


def test_check_prints_the_table_and_writes_it(run, model_folders, tmp_path):  # noqa: F811
    status, out, _ = run("check", "--model", model_folders["llama"], "--out", tmp_path / "check.json")
    assert status == 0
    assert "logits against the original, relative" in out
    assert "NOT OK" not in out
    content = json.loads((tmp_path / "check.json").read_text())
    assert content["ok"] is True
    assert {fact["name"] for fact in content["facts"]} >= {"BOS", "hooks at z"}
    assert content["model"]["processing"] == []


def test_check_says_what_to_do_and_exits_with_1(run, tmp_path):  # noqa: F811
    folder = save_tiny_model("llama", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(folder)
    status, out, _ = run("check", "--model", folder)
    assert status == 1
    assert "NOT OK  tokens beyond the embedding" in out
    assert "take them out of the tokenizer" in out


def test_check_refuses_a_model_that_is_none_in_one_line(run, tmp_path):  # noqa: F811
    status, _, err = run("check", "--model", tmp_path)
    assert status == 2
    assert err.count("\n") == 1
    assert sys.argv[0] == "sea-lens"
