"""Whether two captures were made in the same way, so that they can be put together."""

from collections.abc import Mapping
from typing import Any

from ..errors import MismatchError
from ..models.language_model import EMBEDDING, NORMS_BEHIND

# Facts of a model that say how it rounds, and those that earlier captures do not state.
_MAY_DIFFER = ("check", "vllm", NORMS_BEHIND, EMBEDDING)


def comparable(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What two captures must agree on: not on what differs by rounding, as what the check of the model measured."""
    # Shards of version 0.1 do not say how weights were processed; those of `load_model` were not.
    recorded = {name: fact for name, fact in provenance.get("model", {}).items() if name not in _MAY_DIFFER}
    model = {"processing": []} | recorded
    return {**provenance, **({"model": model} if "model" in provenance else {})}


def refuse_other_run(ours: Mapping[str, Any], theirs: Mapping[str, Any], what: str) -> None:
    """Refuse to put together what was captured in different ways; `what` begins the error.

    Raises:
        MismatchError: naming the first fact that differs.
    """
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            raise MismatchError(f"{what}: {name} is {_shown(ours.get(name))} here, {_shown(theirs.get(name))} there")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
