"""Benchmarks: what an edit does to truthfulness and bias, and what else it does.

In reading order: `hub` (data from the hub), `benchmark` (what a benchmark is), `multiple_choice` (MC1 to MC3), a file
for each benchmark with all that is known of it (`truthfulqa`, `bbq_targets` and `bbq`, `crows_pairs`, `capability`,
`numbers` and `gsm8k`, `perplexity`), `registry` (their list), `fingerprints` and `journal` (how an interrupted
evaluation goes on), `score_intervals`, `results`, `run`, `choosing`, `tuning_results` and `tuning`, `harness_lm` and
`harness` (EleutherAI's harness), `dose_results` and `dosing` (effect and cost by strength).

A new benchmark is one file beside `truthfulqa` and its entry in `registry`.
"""
