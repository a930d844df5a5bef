"""The other methods (docs/method.md 5), each an `Edit`, so that what measures a spectral edit measures them too.

In reading order: `steering` (adding a vector, as the next two do), `mean_steering` (mean difference, CAA),
`probed_heads` (ITI), `concept_erasure` (LEACE), `layer_contrast` (DoLa), `few_shot` (examples in context), `adapters`
and `adapter_training` (LoRA), `feature_directions` and `finite_steps` (what the next three share), `ablated_direction`
(directional ablation), `covariance_ratios` (generalised eigenvectors), `plane_rotation` (angular steering). Files of
other tools: `given_vectors` (the edit of their vectors), `control_vectors` (repeng), `steering_vector_files`
(steering-vectors), `steered_files` (lm-eval), `released_files` (SEA's own code), `foreign` (which of them a file is),
`saving_as` (writing such files). Then `loading` (an edit of any method from its file).
"""
