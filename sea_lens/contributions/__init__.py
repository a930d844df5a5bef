"""Why an edit works: contributions of layers, positions, directions and heads to its effect.

In reading order: `base` and `results` (what every analysis returns), `study` (what every analysis begins with),
`layers` (layers and positions), `directions`, `heads`, `stability_results` and `resampled_fits` (how far all of it
depends on the demonstrations); behind them `games` (who plays), `integral` (the path integral), `direct` and
`patching` (heads), `describe` (what a direction stands for).
"""
