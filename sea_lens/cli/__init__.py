"""The command line, `sea-lens`.

In reading order: `main` (runs a command and reports errors), `commands` (all commands but two), `evaluation` (these
two, `evaluate` and `compare`), `options` (what commands share), `attribution` (analyses and their report),
`demo_report` (the demo's report), `files` (folders, figures and tables).
"""

from .main import main

__all__ = ["main"]
