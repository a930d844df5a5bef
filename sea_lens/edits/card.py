"""The card of an edit: what it is, how it was made, what it does and how it is used, as Markdown."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

# What may stand in a card's head and code: a name as the hub has them, or of a folder.
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def card(edit: Any, file: str, repo_id: str | None = None, results: Mapping[str, Any] | None = None) -> str:
    """A model card with the metadata that the hub reads.

    Args:
        edit: a saved edit.
        file: name of its file.
        repo_id: where it is on the hub, None where it is not known yet.
        results: by name, what was measured: results of `sl.effect`, `sl.compare` and the like, or texts. Each is told
            as it says itself, with its interval and its controls.
    """
    model, name = edit.provenance.get("model", {}), repo_id or "user/name"
    base = model.get("name")
    base = base if isinstance(base, str) and _NAME.fullmatch(base) else "unknown"
    head = ["---", "library_name: sea-lens", "tags:", "- sea-lens", "- activation-editing", "- steering"]
    # The hub links models by names of its own alone, which have an owner.
    head += [f"base_model: {base}", "base_model_relation: adapter"] if "/" in base else []
    return "\n".join(
        [
            *head,
            "---",
            "",
            f"# An edit of {base}",
            "",
            f"{_kind(edit)} at `{edit.site}` of layers {_ranges(edit.layers)}, made by sea_lens.",
            "It changes what the model computes for as long as it is applied.",
            "",
            "## What it is",
            "",
            *_table(_facts(edit, model)),
            "",
            "## What it does",
            "",
            *_told(results),
            "",
            "## How to use it",
            "",
            *_usage(edit, name, file, base, hub=repo_id is not None),
        ]
    )


def _kind(edit: Any) -> str:
    return f"{type(edit).__name__} ({edit.kind})"


def _facts(edit: Any, model: Mapping[str, Any]) -> list[tuple[str, str]]:
    about = edit.provenance
    sizes = ", ".join(f"{model[name]} {words}" for name, words in _SIZES.items() if model.get(name) is not None)
    rows = [("model", f"{model.get('name')}: {sizes}" if sizes else str(model.get("name")))]
    rows += [("weights", ", ".join(model["processing"]) or "as trained")] if _is_list(model.get("processing")) else []
    for source in about.get("demonstrations") or []:
        rows.append(("demonstrations", ", ".join(f"{key} {value}" for key, value in source.items() if key in _SOURCE)))
    ranks = getattr(edit, "ranks", None)
    if ranks:
        shown = ", ".join(f"{key}: {pair}" for key, pair in list(ranks.items())[:8])
        rows.append(("ranks", shown + (", …" if len(ranks) > 8 else "")))
    options = getattr(edit, "options", None)
    if isinstance(options, Mapping):
        rows.append(("options", ", ".join(f"{key} {_short(value)}" for key, value in options.items())))
    reading = {key: about[key] for key in ("position", "neutral", "fit_site", "n") if about.get(key) is not None}
    rows += [("read", ", ".join(f"{key} {value}" for key, value in reading.items()))] if reading else []
    remembered = edit.defaults.record
    rows.append(("used by default", ", ".join(f"{key} {value}" for key, value in remembered.items()) or "as fitted"))
    rows.append(("digest", f"`{edit.digest[:16]}`"))
    if isinstance(made := about.get("versions"), Mapping):
        rows.append(("made with", ", ".join(f"{key} {value}" for key, value in made.items())))
    return [(name, value) for name, value in rows if value]


_SIZES = {"n_layers": "layers", "d_model": "wide", "n_heads": "heads"}
_SOURCE = ("n", "sha256", "source")


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 120 else f"{text[:120]}…"


def _ranges(layers: Iterable[int]) -> str:
    found = sorted(layers)
    whole = found == list(range(found[0], found[-1] + 1))
    return f"{found[0]} to {found[-1]}" if whole and len(found) > 1 else ", ".join(map(str, found))


def _table(rows: list[tuple[str, str]]) -> list[str]:
    cells = ((name, value.replace("|", "\\|").replace("\n", " ")) for name, value in rows)
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells)]


def _told(results: Mapping[str, Any] | None) -> list[str]:
    if not results:
        return ["Nothing was measured, or nobody said what: without an effect beside its control nothing is claimed."]
    lines: list[str] = []
    for name, result in results.items():
        lines += [f"### {name}", "", "```", *str(result).splitlines(), "```", ""]
    return lines[:-1]


def _usage(edit: Any, name: str, file: str, base: str, *, hub: bool) -> list[str]:
    read = f'sl.{type(edit).__name__}.from_pretrained("{name}")' if hub else f'sl.load_edit("{file}")'
    lines = [
        "With TransformerLens, where it can be measured and explained:",
        "",
        "```python",
        "import sea_lens as sl",
        "",
        f'model = sl.load_model("{base}")',
        f"edit = {read}",
        "with edit.applied(model):",
        '    sl.generate(model, "…")',
        "```",
    ]
    if edit.of_activations:
        lines += [
            "",
            "With transformers alone:",
            "",
            "```python",
            "import sea_lens as sl",
            "from transformers import AutoModelForCausalLM",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{base}").eval()',
            f"with sl.hf.applied(model, {read}):",
            "    model.generate(…)",
            "```",
        ]
    # What the plug-in refuses is not offered.
    if edit.of_activations and edit.site in ("mlp_out", "attn_out", "resid_post") and edit.where().positions == "all":
        fetch = [f"hf download {name} {file} --local-dir ."] if hub else []
        lines += ["", "Served by vLLM:", "", "```", *fetch, f"SEA_LENS_EDIT={file} vllm serve {base}", "```"]
    return lines
