"""Figures; every function takes the numbers that it draws, draws on given axes or on new ones, and returns them.

In reading order: `axes` (what all share), `edits` (an edit and its effect), `contributions` (what carries the effect),
`scores` (the scores of a benchmark). They are imported where they are drawn, since pyplot takes half as long to
import as torch.
"""
