"""Fails where a notebook's cells differ from those of its script, or were not run: `make notebooks` makes them anew."""

import sys

import jupytext
from run import scripts


def main() -> int:
    """Compare every notebook with the script of the same name."""
    unpaired, unrun = [], []
    for script in scripts():
        path = script.with_suffix(".ipynb")
        notebook = jupytext.read(path) if path.exists() else None
        cells = [
            None if one is None else [(cell.cell_type, cell.source) for cell in one.cells]
            for one in (jupytext.read(script), notebook)
        ]
        if notebook is None or cells[0] != cells[1]:
            unpaired.append(path.name)
        elif any(cell.cell_type == "code" and cell.execution_count is None for cell in notebook.cells):
            unrun.append(path.name)
    for names, why in ((unpaired, "not the cells of their scripts"), (unrun, "not run")):
        if names:
            print(f"{why}: {', '.join(names)}; run make notebooks")
    return len(unpaired) + len(unrun) > 0


if __name__ == "__main__":
    sys.exit(main())
