"""A fuzzer of everything that reads a file.

In reading order: `corpus` (files that real savers write, and hostile ones), `mutations` (what is done to them),
`oracles` (what an accepted file must be), `loaders` (what reads them), `run` (many inputs in processes of their own).
"""
