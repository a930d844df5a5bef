"""Files of lm-eval's model `steered`: a vector for each module of a Hugging Face model (docs/method.md 5.7).

    {"layers.3": {"action": "add", "steering_vector": v, "steering_coefficient": c, "bias": None, "head_index": None}}

adds c v to the output of that module at every position.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from .._support.arguments import as_number
from .._support.foreign_files import as_foreign
from .given_vectors import GivenVectors, given_vectors

STEERED = "lm-eval steered"
# A block by its list and number, and what of it: names of modules in Hugging Face's models, with whatever in front.
_MODULE = re.compile(r"(?:[A-Za-z_]+\.)*(?:layers|h|blocks)\.(0|[1-9][0-9]{0,8})(?:\.([A-Za-z_]+))?")
_SITES = {
    None: "resid_post",
    **dict.fromkeys(("mlp", "feed_forward", "ffn"), "mlp_out"),
    **dict.fromkeys(("self_attn", "attn", "attention", "self_attention"), "attn_out"),
}


def is_steered(content: Any) -> bool:
    """Whether a file's content is of this form."""
    return isinstance(content, Mapping) and bool(content) and all(isinstance(one, Mapping) for one in content.values())


def steered_vectors(path: str | os.PathLike[str], content: Mapping[Any, Mapping[str, Any]]) -> GivenVectors:
    """The edit of what the file adds; its coefficients are part of the vectors.

    Raises:
        FileError: it does something else than add, to something that is no site, or to several sites at once.
    """
    with as_foreign(path, "vectors of lm-eval's steered model"):
        found, scales, sites, names = {}, {}, {}, {}
        for name, entry in content.items():
            site, layer = _place(name)
            if entry["action"] != "add":
                raise ValueError(f"its action at {name!r} is {entry['action']!r}, and only 'add' adds a fixed vector")
            for other in ("bias", "head_index"):
                if entry.get(other) is not None:
                    raise ValueError(f"it has a {other} at {name!r}, which adding a vector to a layer has not")
            if layer in found:
                raise ValueError(f"{names[layer]!r} and {name!r} are the same layer, and an edit acts at one site")
            found[layer], names[layer], sites[site] = entry["steering_vector"], name, name
            scales[layer] = as_number(entry.get("steering_coefficient", 1.0), "steering_coefficient")
        if len(sites) > 1:
            raise ValueError(f"it acts at {', '.join(map(repr, sites.values()))}, and an edit acts at one site")
        (site,) = sites
        more = {"modules": {str(layer): name for layer, name in sorted(names.items())}}
        more["coefficients"] = {str(layer): scale for layer, scale in sorted(scales.items())}
        return given_vectors(path, STEERED, site, found, scales=scales, more=more)


def _place(name: Any) -> tuple[str, int]:
    match = _MODULE.fullmatch(name) if isinstance(name, str) else None
    if match is None or match[2] not in _SITES:
        parts = ", ".join(str(part) for part in _SITES if part)
        raise ValueError(
            f"its hook point {name!r} is no site: expected a block such as 'layers.3', or of a block one of {parts}"
        )
    return _SITES[match[2]], int(match[1])
