"""The command line, `sea-lens`."""

from .main import main

__all__ = ["main"]
