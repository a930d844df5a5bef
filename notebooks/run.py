"""Makes every notebook anew from its script, with its outputs: `make notebooks`.

Times of cells are left out, so that a notebook changes only where its outputs do.
"""

import argparse
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
OTHERS = {Path(__file__).name, "check_paired.py"}


def scripts() -> list[Path]:
    """Those that notebooks are made of."""
    return [path for path in sorted(FOLDER.glob("*.py")) if path.name not in OTHERS]


def made(script: Path) -> nbformat.NotebookNode:
    """The notebook of a script, run from top to bottom."""
    notebook = jupytext.read(script)
    NotebookClient(notebook, timeout=900, kernel_name="python3", record_timing=False).execute(cwd=str(FOLDER))
    # Which Python ran it is no part of what it shows.
    notebook.metadata.pop("language_info", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        if cell.cell_type == "code":
            # Warnings of libraries name folders of this machine.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Run all notebooks, or those that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scripts", nargs="*", type=Path, default=scripts())
    for script in parser.parse_args().scripts:
        print(script.name)
        jupytext.write(made(script), script.with_suffix(".ipynb"), fmt="ipynb")


if __name__ == "__main__":
    main()
