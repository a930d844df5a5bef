"""The paper's tables and figures, each by a script of `analyses/`, and one page of them all.

In reading order: `presets` (settings, with those of the released scripts), `data` (what a folder of data holds),
`material` (which tasks and demonstrations that is for a model), `judged` (generated answers, rated), `released` (what
the released code does differently), `subject` (what an analysis works on), `opening` (the user's model or the shipped
one), `others` (the other methods as they are customarily used), `findings` (what an analysis finds), `words` (sentences
that are computed from rows), `variants` (edits side by side), `command` (the command line of a script), `items` (the
list of analyses), `known` (the paper's own numbers), `checks` (what can be run), `run` (which runs them), `sections` (a
finding as HTML), `page` (which shows them all).
"""
