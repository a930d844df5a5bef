"""Benchmarks: what an edit does to truthfulness and bias, and what else it does.

In reading order: `benchmark` (what a benchmark is), `multiple_choice` (MC1 to MC3), the benchmarks `truthfulqa`, `bbq`,
`crows_pairs`, `capability`, `gsm8k` and `perplexity`, `registry` (by name), `hub` (data from the hub), `identity` and
`journal` (going on where it was), `results`, `run`, `tuning`, `harness` and `harness_lm` (EleutherAI's harness).
"""
