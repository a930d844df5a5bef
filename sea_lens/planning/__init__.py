"""What fits where: memory, passes and disk of every call, before it is made.

In reading order: `quantities` (sizes of memory), `live_bytes` (what code holds at most, counted without numbers),
`empty_models` (a model that has sizes alone), `texts` (in tokens, with a tokenizer or without), `loading_memory`,
`statistics_memory` (what a fit takes) and `counted_steps` (what passes take), `plans` (the result), `planned_steps`
(each step of it), `advice` (what would make it fit) and `planner` (all of it).
"""
