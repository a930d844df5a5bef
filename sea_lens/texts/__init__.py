"""What goes in: demonstrations, contrasts and prompts, and the files that they are read from.

In reading order: `items` (one demonstration, one contrast), `prompts` (templates with examples), `chat_prompts` (the
same inside a tokenizer's chat template), `truthfulqa_rows` (a question of TruthfulQA in each of its files), `readers`
(numbered items from the files of public benchmarks), `datasets` (rows of any data set), `demonstrations` (checked lists
of items), `digests` (by which equal questions are found), `overlap` (which questions two sets of texts share).
"""
