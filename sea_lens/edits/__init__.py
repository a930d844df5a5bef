"""What an edit is, and where it acts, whatever method made it.

In reading order: `where` (which layers, how strongly), `in_model` (what stands in a model), `base` (what can be put
into one), `activation` (edits that change activations at a site), `several` (several edits as one), `saved` (edits in
files), `card` and `hub` (on the Hugging
Face hub), `seen` (the questions that an edit was made from), `hf` (edits in plain Hugging Face models), `affine`,
`folding` and `foldable` (an edit in a model's weights), `in_engine` (an
edit in a vLLM engine), `generation` (continuations under an edit).
"""
