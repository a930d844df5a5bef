"""Fails where a notebook's cells differ from those of its script: `make notebooks` makes the notebooks anew."""

import sys
from pathlib import Path

import jupytext


def main() -> int:
    """Compare every notebook with the script of the same name."""
    folder = Path(__file__).parent
    unpaired = []
    for script in sorted(folder.glob("*.py")):
        if script.name == Path(__file__).name:
            continue
        notebook = script.with_suffix(".ipynb")
        cells = [
            [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells] if path.exists() else None
            for path in (script, notebook)
        ]
        if cells[0] != cells[1]:
            unpaired.append(notebook.name)
    if unpaired:
        print(f"not the cells of their scripts: {', '.join(unpaired)}; run make notebooks")
    return len(unpaired) > 0


if __name__ == "__main__":
    sys.exit(main())
