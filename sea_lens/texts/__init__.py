"""What goes in: demonstrations, contrasts and prompts, and the files that they are read from.

In reading order: `items` (one demonstration, one contrast), `prompts` (templates with examples and chat templates),
<<<<<<< HEAD
`truthfulqa_rows` (a question of TruthfulQA in each of its files), `readers` (numbered items from the files of public
benchmarks), `demonstrations` (checked lists of items), `digests` (by which equal questions are found).
=======
`readers` (numbered items from the files of public benchmarks), `demonstrations` (checked lists of items), `digests` (by which equal questions are
found), `overlap` (which questions two sets of texts share).
>>>>>>> d95dcd1 (Fits on resampled demonstrations, overlap of what is fitted, chosen and tested, and how sure a choice is; signatures beside the distance of the means)
"""
