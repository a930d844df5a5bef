"""Edits on the Hugging Face hub: a repository with the file of an edit and its card (docs/method.md 12.5).

huggingface_hub is imported where it is used.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import FileError
from .card import card

FILE, CARD = "edit.safetensors", "README.md"


def push(edit: Any, repo_id: str, results: Mapping[str, Any] | None, options: Mapping[str, Any]) -> str:
    """Upload an edit with its card; arguments and errors as in `SavedEdit.push_to_hub`."""
    from huggingface_hub import ModelHubMixin

    class OnHub(ModelHubMixin):
        """An edit as huggingface_hub's mixin wants it: what saves itself to a folder, which becomes a repository."""

        def _save_pretrained(self, save_directory: Path) -> None:
            edit.save(save_directory / FILE)
            (save_directory / CARD).write_text(card(edit, FILE, repo_id, results), encoding="utf-8")

    with _failures_named(f"{repo_id} on the hub"):
        return str(OnHub().push_to_hub(repo_id, **options))


def pull(name: str, load: Callable[[Path], Any], options: Mapping[str, Any]) -> Any:
    """An edit of a repository, or of a folder that has the file; errors as in `SavedEdit.from_pretrained`."""
    from huggingface_hub import hf_hub_download

    if Path(name).is_dir():
        return load(Path(name) / FILE)
    with _failures_named(f"{name} on the hub"):
        path = Path(hf_hub_download(name, FILE, **options))
    return load(path)


@contextlib.contextmanager
def _failures_named(what: str) -> Iterator[None]:
    """Whatever the hub answers becomes one error that names the repository.

    Raises:
        FileError: with the reason.
    """
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except LocalEntryNotFoundError as error:
        raise FileError(f"{what} cannot be reached, and is not in the cache of this machine: {FILE}") from error
    # What the network does is an error of the hub's client, or of the operating system.
    except Exception as error:
        theirs = any(one.__module__.split(".")[0] in ("httpx", "httpx2", "requests") for one in type(error).__mro__)
        if not theirs and not isinstance(error, (HFValidationError, OSError)):
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise FileError(f"{what}: {reason}") from error
