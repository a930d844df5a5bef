"""`python -m sea_lens` is `sea-lens`."""

from .cli import main

main()
