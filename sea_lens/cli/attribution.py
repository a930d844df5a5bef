"""Files of `sea-lens attribute`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import plots
from ..contributions import HeadContributions, LayerContributions
from ..effect import Effect
from ..report import markdown_table, write_figure, write_json
from ..spectral import SpectralEdit
from ..storage import write_atomically
from ..versions import versions


def write_attribution(
    folder: Path,
    edit: SpectralEdit,
    effect: Effect,
    by_layer: Sequence[LayerContributions],
    heads: HeadContributions,
    settings: dict[str, Any],
) -> None:
    """Write results.json, report.md and the figures."""
    write_figure(folder / "effect.png", effect.plot())
    for contributions in by_layer:
        write_figure(folder / f"layers_{contributions.method}.png", contributions.plot())
    write_figure(folder / "heads_direct.png", heads.plot())
    write_figure(folder / "spectra.png", plots.spectra(edit))
    write_json(
        folder / "results.json",
        {
            "effect": {"value": effect.effect, "interval": effect.interval, "items": effect.items},
            "layers": {c.method: layer_numbers(c) for c in by_layer},
            "heads": {"direct": head_numbers(heads)},
            "settings": settings,
            "edit": {"options": edit.options, "n": edit.n, "site": edit.site, "provenance": edit.provenance},
            "versions": versions(),
        },
    )
    top = [{"head": f"{layer}.{head}", "direct": value} for (layer, head), value in heads.top(10)]
    sections = [
        "# Why the edit works\n",
        f"{effect}\n",
        "![effect](effect.png)\n",
        "## Layers\n",
        *(
            f"{c.method}: sum {c.total:+.4f} of the effect {c.effect:+.4f} (difference {c.closure_error:.1e})\n\n"
            f"{markdown_table(c.to_frame().to_dict(orient='records'))}\n\n![{c.method}](layers_{c.method}.png)\n"
            for c in by_layer
        ),
        "## Heads\n",
        (
            f"Direct contributions to the change of the logit difference ({heads.effect:+.4f}); closure error "
            f"{heads.closure_error:.1e}.\n\n{markdown_table(top)}\n\n![heads](heads_direct.png)\n"
        ),
        "## Spectra\n",
        "![spectra](spectra.png)\n",
    ]
    write_atomically(folder / "report.md", "\n".join(sections))


def layer_numbers(contributions: LayerContributions) -> dict[str, Any]:
    """Every number of a layer analysis."""
    return {
        "layers": contributions.layers,
        "effect": contributions.effect,
        "total": contributions.total,
        "closure_error": contributions.closure_error,
        "details": contributions.details,
        "values": contributions.to_frame().to_dict(orient="records"),
        "item_values": contributions.item_values,
    }


def head_numbers(heads: HeadContributions) -> dict[str, Any]:
    """Every number of a head analysis."""
    return {
        "effect": heads.effect,
        "total": heads.total,
        "closure_error": heads.closure_error,
        "values": heads.values,
        "others": heads.others,
    }
