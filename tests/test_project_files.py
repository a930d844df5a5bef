"""The files around the package: they agree with it, with each other, and with what is there."""

import re
from pathlib import Path

import pytest
from test_house import ROOMS

import sea_lens as sl

PROJECT = Path(__file__).parents[1]


def text(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")


def paths_in(name: str) -> set[str]:
    """The paths in backticks in a file, without those that are made (`.venv`) or to be written (`<method>.py`)."""
    found = re.findall(r"`([\w./-]*[/.][\w./-]+|[\w-]+/)`", text(name))
    return {path for path in found if not path.startswith(".venv")}


def links_in(name: str) -> set[str]:
    """The files that a file links to."""
    return {link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text(name)) if "://" not in link}


def test_the_versions_agree():
    cited = re.search(r"^version: (.+)$", text("CITATION.cff"), re.MULTILINE)
    released = re.search(r"^## \[(\d[^]]*)\] - \d{4}-\d{2}-\d{2}$", text("CHANGELOG.md"), re.MULTILINE)
    assert cited is not None
    assert released is not None
    assert cited[1] == released[1] == sl.__version__


def test_the_changelog_begins_with_what_is_not_released():
    assert re.findall(r"^## (.+)$", text("CHANGELOG.md"), re.MULTILINE)[0] == "[Unreleased]"


def test_every_path_in_contributing_is_there():
    paths = paths_in("CONTRIBUTING.md")
    assert len(paths) > 30
    assert sorted(path for path in paths if not (PROJECT / path).exists()) == []


def test_contributing_has_the_rooms_in_their_order():
    listed = re.findall(r"^\| `sea_lens/(\w+)(?:/|\.py)` \|", text("CONTRIBUTING.md"), re.MULTILINE)
    assert listed == list(ROOMS)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_leads_somewhere(name):
    assert sorted(link for link in links_in(name) if not (PROJECT / link).exists()) == []


def test_the_source_distribution_has_all_that_the_readme_and_contributing_name():
    tomllib = pytest.importorskip("tomllib")
    build = tomllib.loads(text("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]
    included = {pattern: sorted(PROJECT.glob(pattern)) for pattern in build["sdist"]["include"]}
    assert [pattern for pattern, found in included.items() if not found] == []
    tops = {path.name for found in included.values() for path in found}
    named = paths_in("CONTRIBUTING.md") | links_in("README.md") | links_in("CONTRIBUTING.md")
    assert {Path(path).parts[0] for path in named} <= tops


def test_what_the_package_reads_at_run_time_lies_in_it():
    package = Path(sl.__file__).parent
    for data in ("py.typed", "texts/prompt_templates.json", "testbed/weights/model.safetensors"):
        assert (package / data).is_file()


LOCKS: tuple[str, ...] = ("constraints.txt", "constraints-bridge.txt", "constraints-newest.txt")


def pinned(name: str) -> dict[str, str]:
    """The versions in a lock file, and that of Python, which its first line says."""
    lines = text(name).splitlines()
    python = re.fullmatch(r"# Python (\d\.\d+)", lines[0])
    assert python is not None
    return {"Python": python[1]} | dict(line.split("==") for line in lines[1:])


@pytest.mark.parametrize("name", [*LOCKS, "constraints-vllm.txt"])
def test_a_lock_file_holds_versions_alone(name):
    # No addresses, no folders of the machine that wrote it, no builds for one kind of machine.
    assert [line for line in text(name).splitlines()[1:] if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_the_readme_tells_the_versions_that_the_lock_files_pin():
    rows = [
        line.strip("| ").split(" | ") for line in text("README.md").splitlines() if line.startswith("| `constraints")
    ]
    names = ("Python", "torch", "transformers", "transformer-lens")
    expected = [[f"`{lock}`", *(pinned(lock)[name] for name in names)] for lock in LOCKS]
    assert [row[:5] for row in rows] == expected


@pytest.mark.parametrize("name", ["transformers", "transformer-lens"])
def test_pip_takes_no_minor_release_that_was_not_run(name):
    bound = re.search(rf'"{name}>=[\d.]+,<(\d+)\.(\d+)"', text("pyproject.toml"))
    assert bound is not None
    run = max(tuple(map(int, pinned(lock)[name].split(".")[:2])) for lock in LOCKS)
    assert (int(bound[1]), int(bound[2])) == (run[0], run[1] + 1)


def test_ci_runs_every_lock_file_and_all_tests_last():
    steps = re.findall(r"^make (.+)$", text(".ci/run"), re.MULTILINE)
    assert {"test-bridge", "test-newest"} < set(steps)
    assert steps[-1] == "test"
