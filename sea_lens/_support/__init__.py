"""What everything else stands on; nothing here knows of models or edits.

In reading order: `arguments` (users' arguments as plain values), `saturation` (what overflows stays finite),
`statistics` (bootstrap intervals), `regular_files` (names of files that can be read at once), `text_rows` (rows of text
files), `storage` (safetensors files, and writing whole or not at all), `json_files` (results as JSON), `progress`
(progress bars), `versions` (what software made a result).
"""
