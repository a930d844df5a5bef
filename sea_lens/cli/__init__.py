"""The command line, `sea-lens`.

In reading order: `main` (runs a command and reports errors), `commands` (all commands but three), `evaluation` (two of
these, `evaluate` and `compare`), `tuning` (the third, `tune`), `options` (what commands share), `attribution` (analyses
and their report), `resume` (how an interrupted `attribute` goes on), `demo_report` (the demo's report), `files`
(folders, figures and tables).
"""

from .main import main

__all__ = ["main"]
