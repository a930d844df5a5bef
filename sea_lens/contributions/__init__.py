"""Why an edit works: contributions of layers, positions, directions and heads to its effect.

In reading order: `base` and `results` (what every analysis returns), `study` (what every analysis begins with),
`layers` (layers and positions), `directions` and `angles` (between subspaces), `virtual_results` and `virtual` (which
heads write and read a direction, by weights), `heads`, `recovery_results` and
`recovering` (how few heads and MLPs suffice), `interaction_results` and `interacting` (what acts only together),
`mediation_results` and `mediating` (by which way a head is reached), `frozen_results` and `freezing` (through patterns,
values, MLPs or the norm), `writing` (text that the model writes, and scores of it), `stability_results` and
`resampled_fits` (how far all of it depends on the demonstrations).

Behind them: `games` (who plays), `integral` (the path integral), `direct`, `patching`, `nodes` and `joint_patching`
(heads and MLPs, and sets of them), `edges`, `edge_slopes` and `path_patching` (ways into them), `direction_parts` (the
bases that an edit is taken apart in) and `describe` (what a direction stands for).
"""
