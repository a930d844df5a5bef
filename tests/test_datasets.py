"""Demonstrations from data sets of the `datasets` library and from any rows."""

import itertools
import subprocess
import sys
from typing import Any

import pytest
from test_processes import ENVIRONMENT

import sea_lens as sl

TEMPLATES: dict[str, Any] = {"neutral": "Q: {q}", "positive": "Q: {q} A: {right}", "negative": "Q: {q} A: {wrong}"}
ROWS: list[dict[str, Any]] = [{"q": f"what is {i} ?", "right": f"r{i}", "wrong": i, "more": None} for i in range(25)]


def test_rows_of_any_kind_give_the_same_demonstrations():
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    expected = sl.Demonstrations(
        sl.Demonstration(f"Q: {row['q']}", f"Q: {row['q']} A: {row['right']}", f"Q: {row['q']} A: {row['wrong']}")
        for row in ROWS
    )
    for source in (ROWS, iter(ROWS), table, table.to_iterable_dataset(num_shards=4)):
        assert sl.Demonstrations.from_dataset(source, **TEMPLATES) == expected
    first = sl.Demonstrations.from_dataset(table.to_iterable_dataset(num_shards=4), limit=9, **TEMPLATES)
    assert first == expected[:9]
    assert first.names[8] == "data set, row 9"


def test_no_more_rows_are_read_than_are_asked_for():
    read = []

    def endless():
        for row in itertools.cycle(ROWS):
            read.append(row)
            yield row

    assert len(sl.Demonstrations.from_dataset(endless(), limit=3, **TEMPLATES)) == 3
    assert len(read) == 3


def test_what_cannot_be_used_is_refused():
    for change, message in (
        ({"neutral": "no field"}, "neutral 'no field' must use some of"),
        ({"negative": "{missing}"}, "negative '{missing}' must use some of"),
        ({"positive": "{q:9999999999}"}, "positive"),
        ({"limit": 0}, "limit"),
    ):
        with pytest.raises(sl.InputError, match=message):
            sl.Demonstrations.from_dataset(ROWS, **{**TEMPLATES, **change})
    for source in (7, {"q": "x"}, None):
        with pytest.raises(sl.InputError, match="expected the name of a data set or rows"):
            sl.Demonstrations.from_dataset(source, **TEMPLATES)
    for rows, message in (
        ([*ROWS[:3], {**ROWS[3], "q": None}], "data set, row 4: field 'q' is NoneType"),
        ([*ROWS[:2], {**ROWS[2], "right": "2"}], "data set, row 3: positive and negative"),
        ([["q"]], "row 1: expected an object with fields, got list"),
        ([], "no demonstrations"),
    ):
        with pytest.raises(sl.DemonstrationError, match=message):
            sl.Demonstrations.from_dataset(rows, **TEMPLATES)


def test_a_name_that_cannot_be_fetched_is_one_error(monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(sl.FileError, match="nobody/nothing cannot be fetched from the Hugging Face hub"):
        sl.Demonstrations.from_dataset("nobody/nothing", **TEMPLATES)


SHARED = """
import datasets, sys
sys.path.insert(0, "tests")
from test_datasets import ROWS, TEMPLATES
import sea_lens as sl
from sea_lens._support import processes
processes.start()
source = datasets.Dataset.from_list(ROWS).to_iterable_dataset(num_shards=5)
for limit in (None, 7):
    found = sl.Demonstrations.from_dataset(source, limit=limit, **TEMPLATES)
    assert found == sl.Demonstrations.from_dataset(ROWS, limit=limit, **TEMPLATES)
processes.wait()
print("equal")
"""


def test_several_processes_read_each_some_shards_and_all_have_all_rows(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "script.py").write_text(SHARED)
    started = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "script.py")]
    ran = subprocess.run([sys.executable, *started], env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["equal", "equal"]
