"""What an edit has seen already: the questions that it was fitted from and chosen on (docs/method.md 6.11)."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import SeaLensWarning
from ..texts.overlap import n_shared, unpacked_questions

# What the provenance of an edit calls the questions, and what a sentence says of them.
_ROLES = {"demonstrations": "fitted from", "chosen_on": "chosen on"}
_INSIDE = ("sea_lens", "jaxtyping")


class OverlapWarning(SeaLensWarning):
    """An edit is measured on questions that it was fitted from or chosen on."""


def warn_of_overlap(edit: Any, texts: Sequence[str], what: str) -> None:
    """Warn where the questions that an edit is measured on are some that it has seen.

    Args:
        edit: any edit; one without provenance, or from a file that keeps no digests, tells nothing.
        texts: the questions or prompts.
        what: what they are called, such as "contrasts".

    Warns:
        OverlapWarning: one sentence for the demonstrations and one for what it was chosen on, with counts.
    """
    provenance = getattr(edit, "provenance", None)
    if not isinstance(provenance, Mapping):
        return
    # The warning is to point at the line outside the package that asked for the measurement.
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    for name, role in _ROLES.items():
        entries = provenance.get(name, [])
        known = [entry.get("questions") for entry in entries if isinstance(entry, Mapping)]
        digests = frozenset[str]().union(*map(unpacked_questions, known))
        if shared := n_shared(texts, digests):
            warnings.warn(
                f"{shared} of {len(texts)} {what} ask questions that the edit was {role}: what it does on them says "
                f"little of others",
                OverlapWarning,
                stacklevel=level,
            )
