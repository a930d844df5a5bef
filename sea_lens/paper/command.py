"""The command line of a script of `analyses/`."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from ..errors import FileError, SeaLensError
from .findings import Finding
from .opening import TESTBED, Opening
from .subject import Subject


def _number(least: int) -> Callable[[str], int]:
    """A whole number of the command line, from the least on."""

    def whole(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    return whole


def command(run: Callable[[Subject], Finding], doc: str | None, arguments: list[str] | None = None) -> None:
    """Run an analysis: without arguments on the shipped model.

    Writes NAME.csv, NAME.json and the figures, and prints the paragraph.

    Args:
        run: the analysis.
        doc: the script's docstring, whose first line is the question.
        arguments: of the command line; `sys.argv` by default.
    """
    name = Path(sys.modules[run.__module__].__file__ or "analysis").stem
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument(
        "--model", default=TESTBED, help="Hugging Face name or local folder; default: the shipped model"
    )
    parser.add_argument("--models", nargs="+", default=(), help="of a comparison of models; default: the model alone")
    parser.add_argument(
        "--judge", nargs=2, metavar=("TRUTH", "INFO"), default=(), help="models that rate generated answers"
    )
    parser.add_argument("--data", type=Path, help="folder of data files; the shipped model has its own")
    parser.add_argument("--preset", help="default, paper or release; default: as chosen on dev, or default")
    parser.add_argument("--limit", type=_number(1), help="items of each benchmark, and demonstrations, at most")
    parser.add_argument("--draws", type=_number(0), default=19, help="fits to shuffled demonstrations to compare with")
    parser.add_argument("--batch-size", type=_number(1))
    parser.add_argument("--backend", default="auto", help="auto, hooked or bridge")
    parser.add_argument("--device", help="cpu, cuda, …; default: a GPU if there is one")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, default=Path(name), help="folder for the table and the figures")
    given = parser.parse_args(arguments)
    given.models, given.judge = tuple(given.models), tuple(given.judge)
    opening = Opening(**{one.name: getattr(given, one.name) for one in fields(Opening)})
    try:
        finding = run(opening.subject(given.out))
        if not len(finding.table):
            raise FileError("; ".join(finding.not_run) or finding.paragraph)
        finding.write(given.out, name, opening.record)
    except SeaLensError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(finding.paragraph)
    for reason in finding.not_run:
        print(f"Not run: {reason}")
    print(f"Wrote {given.out}")
