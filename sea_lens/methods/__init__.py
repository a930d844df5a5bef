"""The other methods (docs/method.md 5), each an `Edit`, so that what measures a spectral edit measures them too.

In reading order: `steering` (adding a vector, as the next two do), `mean_steering` (mean difference, CAA),
`probed_heads` (ITI), `concept_erasure` (LEACE), `layer_contrast` (DoLa), `few_shot` (examples in context), `adapters`
and `adapter_training` (LoRA), `loading` (an edit of any method from its file).
"""
