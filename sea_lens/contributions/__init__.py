"""Why an edit works: contributions of layers, positions, directions and heads to its effect.

In reading order: `base` and `results` (what every analysis returns), `study` (what every analysis begins with),
`layers` (layers and positions), `directions` and `angles` (between subspaces), `heads`, `stability_results` and
`resampled_fits` (how far all of it depends on the demonstrations); behind them `games` (who plays), `integral` (the
path integral), `direct` and `patching` (heads), `direction_parts` (the bases that an edit is taken apart in) and
`describe` (what a direction stands for).
"""
