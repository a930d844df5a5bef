"""The edge to models: the only room that knows TransformerLens and the names of its hook points, and vLLM.

In reading order: `language_model` (what the rest asks of any model), `configured` (its sizes by a
configuration), `lens` (a TransformerLens model as the rest sees
it), `parts`, `hook_points`, `hooks`, `hookable`, `passes` and `standing` (what stands in a model, and the proof that it
acted), `copies` (copies of a model in which something stands), `sites` (where activations are read and edited),
`tokens` (texts to tokens), `token_positions` (which tokens of a text are meant), `forward_stand_in`, `logit_hooks`
(changes of all logits), `bare` (passes without what stands in a model), `vocabulary_parts`, `unembedding` and
`predictions` (logits where they count), `readout` (norms, heads and the unembedding), `head_weights` (what heads
write and read, by weights), `cached_pass`, `cache_probe` and
`cache` (what has been read is not read again, where that is exact), `sampling` (the next token), `vllm_worker`,
`vllm_modules`,
`vllm_facts` and `vllm_engine` (a vLLM engine in place of a TransformerLens model), `decoding` (continuing prompts),
`text_trees` (what texts share is run once), `demonstration_texts`, `tree_passes`, `vllm_reader` and `reading` (the
activations of demonstrations); then whether the model is what it should be: `configuration` (what short texts do not
show), `processing` (what was done to the weights), `evaluation_mode`, `reference` (the plain Hugging Face model),
`probes` (what is measured), `check_report` and `facts` (what it is measured against) and `check` (all of it);
`placement` (on which devices, in how many bits), `offload` (blocks that are brought as they run), `spreading` (which
those are), `huggingface`, `conversion`, `attention` (with patterns or without) and `load`; then more changes that no
hook point can make: `prefix` (tokens in front of everything) and `weight_changes`.

A Hugging Face model by itself: `embedding_numbers` (which model it is), `plain_sites` (where its activations are),
`module_hooks`, `plain_passes`, `plain_model` and `projections` (weights that are changed for good).
"""
