"""The command line, `sea-lens`.

In reading order: `main` (runs a command and reports errors), `commands` (their list, and the short ones), `fitting`
and `methods_to_fit` (`fit`), `controlling` (`control`), `generation` (`generate`), `evaluation` (`evaluate` and
`compare`), `tuning` (`tune`), `planning` (`plan`), `exporting` (`export`), `harness` (`harness`), `paper` (`paper`),
`circuit`, `circuit_page`, `circuit_questions`, `circuit_words` and `circuit_shares` (`circuit`), `options` (what
commands share), `attribution` (analyses and their report), `resume` (how an interrupted `attribute` goes on),
`demo_report` (the demo's report), `files` (folders and tables).
"""

from .main import main

__all__ = ["main"]
