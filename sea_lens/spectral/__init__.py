"""The method of the title: from demonstrations to a fitted spectral edit.

In reading order: `features` (the maps φ), `covariance` (what a fit needs), `capturing` (from a model and demonstrations
to a covariance), `sizes` (energy or rank), `subspaces` (what is kept and dropped, and what that does to an activation),
`edit` (`SpectralEdit`), `fitting` (from a covariance to an edit), `terms` (what each direction adds), `controls` (edits
to compare with).
"""
