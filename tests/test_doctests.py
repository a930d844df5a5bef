"""The examples in docstrings are run as a reader would run them."""

import ast
import doctest
from pathlib import Path

import pytest

import sea_lens as sl

pytestmark = pytest.mark.model
PACKAGE = Path(sl.__file__).parent
LEAST = 16


def examples(path: Path) -> list[doctest.DocTest]:
    """The examples of each docstring of a module; from its text, since decorators hide functions from doctest."""
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (docstring := ast.get_docstring(node)):
            place = node.body[0].lineno - 1
            name = f"{path.stem}.{getattr(node, 'name', '')}"
            found.append(doctest.DocTestParser().get_doctest(docstring, {}, name, str(path), place))
    return [one for one in found if one.examples]


TESTS = [one for path in sorted(PACKAGE.rglob("*.py")) for one in examples(path)]


@pytest.fixture(scope="module")
def given():
    """What an example may use without making it: the package and the shipped model."""
    return {"sl": sl, "bed": sl.testbed.load()}


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.name)
def test_an_example_gives_what_it_says(test, given):
    report: list[str] = []
    runner = doctest.DocTestRunner()
    test.globs.update(given)
    runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def test_there_are_examples():
    assert len(TESTS) >= LEAST
