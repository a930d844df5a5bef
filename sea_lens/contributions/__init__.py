"""Why an edit works: contributions of layers, positions, directions and heads to its effect.

In reading order: `base` and `results` (what every analysis returns), `study` (what every analysis begins with),
`layers` (layers and positions), `directions`, `truncation_results` and `truncating` (how few directions suffice),
`angles` (between subspaces), `virtual_results` and `virtual` (which heads write and read a direction, by weights),
`heads`, `recovery_results` and `recovering` (how few heads and MLPs suffice), `interaction_results` and `interacting`
(what acts only together), `mediation_results` and `mediating` (by which way a head is reached), `frozen_results` and
`freezing` (through patterns, values, MLPs or norms), `streaming` (where in the text), `writing` (text that the model
writes, and scores of it), `token_results` and `token_by_token` (its single tokens), `stability_results` and
`resampled_fits` (how far all of it depends on the demonstrations).

Behind them: `shares` (of an effect), `games` (who plays), `integral` (the path integral), `alignment` (positions of
texts of different lengths), `direct`, `patching`, `nodes` and `joint_patching` (heads and MLPs, and sets of them),
`edges`, `edge_slopes` and `path_patching` (ways into them), `direction_parts` (the bases that an edit is taken apart
in) and `describe` (what a direction stands for).
"""
