"""What an edit does to completions.

In reading order: `spans` (what is scored, and each input once), `scorer` (log-probabilities that can be differentiated,
each item in rows of its own: for contrasts and contributions), `shared` (log-probabilities with what prompts share read
once, without gradient: for benchmarks), `effects` (the effect on contrasts).
"""
