"""Edits in other tools' servers.

In reading order: `environment` (what a server is told of an edit), `vllm_plugin` (an edit in vLLM),
`inspect_provider` (an edited model in Inspect).
"""
