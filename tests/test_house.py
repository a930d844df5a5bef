"""The rooms of the package: what may import what, and what a user sees of them."""

import ast
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import sea_lens as sl

PACKAGE = Path(sl.__file__).parent
# A room imports only rooms above it.
ROOMS: Sequence[str] = """
    errors _support texts models edits spectral methods plots measure contributions evaluation testbed planning paper
    serving cli
""".split()
MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> tuple[str, ...]:
    """A module by its parts below the package; a folder's `__init__` is the folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(path: Path) -> set[tuple[str, ...]]:
    """Modules of the package that a module imports, late imports and those for type checkers too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    here = dotted(path) if path.name == "__init__.py" else dotted(path)[:-1]
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        base = (*here[: len(here) - node.level + 1], *(node.module.split(".") if node.module else ()))
        for alias in node.names:
            inner = PACKAGE.joinpath(*base, alias.name)
            found.add((*base, alias.name) if inner.with_suffix(".py").is_file() or inner.is_dir() else base)
    return found - {()}


def test_every_room_is_in_the_order():
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert entries - {"__init__", "__main__"} == set(ROOMS)


def test_the_top_of_the_package_has_at_most_twenty_entries():
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 20


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "errors"])
def test_the_docstring_of_a_room_lists_its_files(room):
    told = set(re.findall(r"`(\w+)`", ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""))
    files = {path.stem for path in (PACKAGE / room).glob("*.py")} - {"__init__"}
    assert files - told == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: ".".join(dotted(path)) or "sea_lens")
def test_a_module_imports_only_rooms_above_its_own(path):
    if not dotted(path) or dotted(path) == ("__main__",):
        return
    room = ROOMS.index(dotted(path)[0])
    below = {".".join(module) for module in imported(path) if ROOMS.index(module[0]) > room}
    assert not below


def test_no_modules_import_each_other_in_a_circle():
    graph = {dotted(path): imported(path) for path in MODULES if dotted(path)}
    done: set[tuple[str, ...]] = set()

    def visit(module: tuple[str, ...], trail: tuple[tuple[str, ...], ...]) -> None:
        assert module not in trail, " -> ".join(".".join(one) for one in (*trail, module))
        if module not in done:
            for other in graph.get(module, set()):
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_dir_shows_the_public_names_and_nothing_else():
    assert dir(sl) == sorted(sl.__all__)
    assert all(hasattr(sl, name) for name in sl.__all__)


def test_no_module_shares_its_name_with_a_public_function():
    functions = {name for name in sl.__all__ if callable(getattr(sl, name))}
    assert not functions & {dotted(path)[-1] for path in MODULES if dotted(path)}


def test_the_package_is_imported_without_pyplot_and_pandas():
    check = "import sys, sea_lens; print([name for name in ('matplotlib', 'pandas', 'sklearn') if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
