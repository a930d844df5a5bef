"""What an edit does to completions.

In reading order: `spans` (what is scored, and the plan that reads each input once), `scorer` (differentiable
log-probabilities, each item in rows of its own: for contrasts and contributions), `shared_prompts` (log-probabilities
without gradient, where what prompts share is read once: for benchmarks), `effects` (the effect on contrasts).
"""
