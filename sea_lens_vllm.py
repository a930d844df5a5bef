"""The entry point by which vLLM loads sea_lens's plug-in: imports nothing where no edit is asked for.

A module of its own beside the package: vLLM calls it in each of its processes, in every use of vLLM where sea_lens is
installed, and leaves out a plug-in that cannot be imported. One that was asked for must not be left out.
"""

import os


def register() -> None:
    """Put the edit of the environment variable SEA_LENS_EDIT into every model that vLLM loads in this process.

    Raises:
        SeaLensError: what the variables say is wrong.
    """
    if "SEA_LENS_EDIT" in os.environ:
        from sea_lens.serving.vllm_plugin import register as register_edits

        register_edits()
