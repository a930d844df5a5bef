"""The edge to models: the only room that knows TransformerLens and the names of its hook points.

In reading order: `lens` (a model as the rest sees it), `load`, `sites` (where activations are read and edited),
`tokens` (texts to tokens), `readout` (norms, heads and the unembedding), `reading` (the activations of
demonstrations), `cache` and `decoding` (what has been read is not read again), `stand_in`, `logits`, `prefix` and
`weights` (changes that no hook point can make).
"""
