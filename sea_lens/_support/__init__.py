"""What everything else stands on; nothing here knows of models or edits.

In reading order: `arguments` (users' arguments as plain values), `saturation` (what overflows stays finite),
`proportions` (intervals of proportions), `resampling` (ends of intervals of numbers), `statistics` (intervals of
means), `significance` (p-values from controls), `regular_files` (reading files that end), `files` (writing whole or not
at all), `processes` (several of one run), `claims` (one writer at a time), `text_rows` (rows of text files), `seals`
(digests inside of what they are of), `strict_json` (JSON that a program wrote), `storage` (safetensors files),
`foreign_files` (what other programs wrote), `json_files` (results as JSON), `interrupts` (one line where a command is
interrupted), `memory` (whether it ran out), `progress` (progress bars), `tables` (parts of tables), `versions` (what
software made a result).
"""
