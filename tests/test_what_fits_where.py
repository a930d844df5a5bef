"""The page of what fits where is what its script writes."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("what_fits_where", ROOT / "timings" / "what_fits_where.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs" / "what_fits_where.md").read_text(encoding="utf-8")


def test_the_page_says_what_the_script_says(script, page):
    assert page.startswith(script.BEFORE)
    assert [line[4:] for line in page.splitlines() if line.startswith("### ")] == [one.title for one in script.SHAPES]


def test_the_rows_of_the_page_are_those_of_the_script(script, page):
    # The other rows, and the other tables, take minutes.
    shape = script.SHAPES[0]
    table = page.split(f"### {shape.title}")[1].split("###")[0]
    for row in script.rows(script.plan_of(shape, script.QUICK)):
        assert row in table.splitlines()
