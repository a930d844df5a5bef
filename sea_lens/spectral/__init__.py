"""The method of the title: from demonstrations to a fitted spectral edit.

In reading order: `features` (the maps φ), `possible_sums` and `covariance` (what a fit needs), `ranks` (how many
directions: an energy, or ranks), `subspaces` (the singular value decomposition, and what it keeps and drops),
`arithmetic` (what an edit does to an activation), `edit` (`SpectralEdit`), `capturing` (from a model and demonstrations
to a covariance), `fitting` (from a covariance to an edit), `direction_terms` (what each direction adds), `controls`
(edits to compare with).
"""
