"""Figures. Every function takes the numbers that it draws, and returns the axes: those given to it, or new ones.

In reading order: `axes` (what all share), `edits` (an edit and its effect), `contributions` (what carries the effect),
`circuits` (how few parts suffice, and by which ways), `scores` (the scores of a benchmark), `findings` (changes side by
side, values along an axis, clouds of points), `saving` (as files). These modules are imported where a figure is drawn,
since pyplot takes half as long to import as torch.
"""
