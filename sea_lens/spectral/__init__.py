"""The method of the title: from demonstrations to a fitted spectral edit.

In reading order: `features` (the maps φ), `products` (a cross-covariance as a linear map, thin or whole),
`layer_statistics` and `statistics` (what a fit needs of one layer, and of all: activations or sums), `runs` (whether
two captures go together), `store` (activations in a folder), `statistics_file` (statistics as named tensors),
`possible` and `signatures` (what statistics can be, and what they say of a layer), `covariance` (`CrossCovariance`),
`singular` (the leading singular vectors alone), `ranks` (how many directions: an energy, or ranks), `subspaces` (what
the decomposition keeps and drops), `arithmetic` (what an edit does to an activation) and `few_steps` (the same where
steps cost more than arithmetic), `factors` (those of a layer where they are needed), `edit` (`SpectralEdit`),
`site_stores` (a store for each of several sites), `one_pass` (several sites and feature maps from one pass),
`capturing` (from a model and demonstrations to a covariance), `fitting` (from a covariance to an edit),
`direction_terms` (what each direction adds), `net` (the directions in which kept and dropped do not cancel),
`principal` (angles between subspaces), `controls` (edits to compare with).
"""
