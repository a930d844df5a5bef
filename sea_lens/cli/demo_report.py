"""What the demo prints, and the files that it writes."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .._support.files import write_atomically
from .._support.json_files import write_json
from .._support.statistics import Interval
from .._support.versions import versions
from ..plots.saving import write_figure
from ..testbed.answers import SHOWN_EVERY, answer_counts, shown_answers
from ..testbed.bed import Testbed
from ..testbed.behaviours import Behaviour
from ..testbed.choosing import MINIMUM_MASS, RULE
from ..testbed.demo import DemoResult, MethodResult
from .attribution import contribution_numbers, section
from .files import markdown_table, spectra_figure

# The edit, with the layers and the strength that were chosen for it.
EDIT = "edit.safetensors"
FIGURES = {
    "comparison.png": "The edit beside its controls, on the test questions",
    "effect.png": "Contrast of every test question, before and after",
    "spectra.png": "Spectra of the cross-covariances, by layer",
    "signature.png": "Size of activations and distance of the class means, by layer",
    "layers_path.png": "Layers, integrated along the strength: they sum to the effect",
    "layers_shapley.png": "Layers, Shapley values: they sum to the effect",
    "layers_leave_one_out.png": "What is lost without a layer's edit",
    "layers_only_one.png": "What a layer's edit does alone",
    "directions_path.png": "Share of each net direction",
    "heads_direct.png": "Direct contribution of each head",
    "heads_sufficiency.png": "Heads: effect of the edited z in the unedited run",
    "heads_necessity.png": "Heads: what is lost with the unedited z in the edited run",
    "heads_gradient.png": "Heads: first-order estimate of sufficiency",
}

EFFECT_COLUMNS = ["method", "contrast", "effect (95 % interval)"]


def _legend(behaviour: Behaviour) -> str:
    return (
        f"Contrast: mean of {_contrast(behaviour)}. Mass: probability left on the two answers. MC1, MC2: of "
        f"{len(behaviour.items['test'][0].answers)} answers, the {behaviour.target}, the {behaviour.foil} and others. "
        "Loss: nats per token on held-out documents. Brackets: 95 % paired intervals (docs/method.md 6.7); for the "
        "metrics, of the change.\n"
    )


def _contrast(behaviour: Behaviour) -> str:
    return f"log p({behaviour.target}) − log p({behaviour.foil})"


def verdict(result: DemoResult) -> str:
    """The conclusion in a sentence, from the numbers."""
    effect = result.spectral.effect.interval
    clear = effect.low > 0
    measured = result.spectral.effect
    assert measured.control_effects is not None
    above = effect.mean > measured.control_effects.max()
    least, most, n = measured.control_effects.min(), measured.control_effects.max(), len(measured.control_effects)
    first = (
        f"The edit moves the model towards the {result.behaviour.target} by {effect} nats"
        if clear
        else f"No clear effect: {effect} nats, an interval that includes zero"
    )
    second = "above" if above else "not above"
    return (
        f"{first}; that is {second} all {n} fits to shuffled demonstrations at the same ranks ({least:+.3f} to "
        f"{most:+.3f}, p = {measured.p_value:.2g})."
    )


def comparison_rows(result: DemoResult) -> list[dict[str, Any]]:
    """One row per method, as printed and reported."""

    def row(name: str, method: MethodResult) -> dict[str, Any]:
        return {
            "method": name,
            "contrast": f"{method.effect.before:+.3f} → {method.effect.after:+.3f}",
            "effect (95 % interval)": str(method.effect.interval),
            "mass": f"{method.effect.before_mass.mean():.2f} → {method.effect.after_mass.mean():.2f}",
            "MC1": _change(method.mc1),
            "MC2": _change(method.mc2),
            "loss on documents": _change(method.loss),
        }

    draws = sorted(result.random_effects)
    shuffled = result.spectral.effect.control_effects
    assert shuffled is not None
    nothing = {"mass": "", "MC1": "", "MC2": "", "loss on documents": ""}
    return [
        row("spectral edit", result.spectral),
        row("mean difference", result.steering),
        {
            "method": f"shuffled demonstrations, {len(shuffled)} fits",
            "contrast": "",
            "effect (95 % interval)": f"{shuffled.min():+.3f} to {shuffled.max():+.3f}",
            **nothing,
        },
        {
            "method": f"random, {len(draws)} draws",
            "contrast": "",
            "effect (95 % interval)": f"{draws[0]:+.3f} to {draws[-1]:+.3f}",
            **nothing,
        },
        {
            "method": f"naming a {result.behaviour.source}",
            "contrast": f"{result.named_source.before:+.3f} → {result.named_source.after:+.3f}",
            "effect (95 % interval)": str(result.named_source.interval),
            **nothing,
        },
    ]


def _change(triple: tuple[float, float, Interval]) -> str:
    before, after, interval = triple
    return f"{before:.3f} → {after:.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def answers_sentence(result: DemoResult) -> str:
    """What the edit does to the greedy answers, over all test questions."""
    found = answer_counts(result.answers)
    return (
        f"Of {found['questions']} test questions {found['right_before']} are answered right without the edit and "
        f"{found['right_after']} with it: {found['mended']} mended, {found['broken']} broken, {found['changed']} "
        f"answers changed in all. Shown is every {SHOWN_EVERY}th question, whatever its answers."
    )


def _chosen(result: DemoResult) -> str:
    options = result.spectral.options
    centred = "centred" if options["centre"] else "uncentred"
    size = f"rank {options['rank']}" if options["rank"] is not None else f"K = {options['energy']}"
    return (
        f"{options['site']}, {centred}, {size}, layers {options['layers']}, strength {options['strength']}; "
        f"ranks {result.edit.ranks}"
    )


def print_demo(result: DemoResult, folder: Path, console: Console) -> None:
    """The table and the verdict, in the terminal."""
    rows = comparison_rows(result)
    effects, sides = EFFECT_COLUMNS, [name for name in rows[0] if name not in EFFECT_COLUMNS[1:]]
    for columns, title, shown in (
        (effects, f"Effect on the test questions: {_contrast(result.behaviour)}, nats", rows),
        (sides, "Before → after [95 % interval of the change]", rows[:2]),
    ):
        table = Table(*columns, title=title)
        for row in shown:
            table.add_row(*(_cell(row[name], narrow=columns is sides) for name in columns))
        console.print(table)
    console.print(f"Chosen on dev: {_chosen(result)}", highlight=False)
    for contributions in result.contributions.values():
        console.print(str(contributions), highlight=False, markup=False, soft_wrap=True)
    console.print(answers_sentence(result), highlight=False)
    for answer in shown_answers(result.answers):
        console.print(
            f"{answer['question']} {answer['before']} → {answer['after']}   ({result.behaviour.target} "
            f"{answer['target']}, {result.behaviour.foil} {answer['foil']})",
            highlight=False,
        )
    console.print(verdict(result), highlight=False, style="bold")
    console.print(f"Report: {folder / 'report.md'}; the edit: {folder / EDIT}", highlight=False)


def _cell(text: str, *, narrow: bool) -> str:
    """A table cell: brackets are not markup, and in a narrow column an interval stands on a line of its own."""
    escaped = text.replace("[", "\\[")
    return escaped.replace(" \\[", "\n\\[") if narrow else escaped


def _shuffled(result: DemoResult) -> list[float]:
    """Effects of the fits to shuffled demonstrations."""
    effects = result.spectral.effect.control_effects
    assert effects is not None
    return effects.tolist()


def write_demo(result: DemoResult, bed: Testbed, folder: Path) -> None:
    """Write results.json, report.md, the edit and the figures; the same bytes every time on one machine."""
    from ..plots import edits as plots

    effects = {
        "spectral edit": result.spectral.effect.interval,
        "mean-difference steering": result.steering.effect.interval,
    }
    axes = {
        "comparison.png": plots.comparison(
            effects, _shuffled(result), "fits to\nshuffled demonstrations", _contrast(result.behaviour)
        ),
        "effect.png": result.spectral.effect.plot(),
        "spectra.png": spectra_figure(result.edit),
        "signature.png": plots.layer_signatures(result.edit.signature or {}, result.edit.centred_signature),
        **{f"{name}.png": contributions.plot() for name, contributions in result.contributions.items()},
    }
    for name, drawn in axes.items():
        write_figure(folder / name, drawn)
    write_json(
        folder / "results.json",
        {
            "behaviour": result.behaviour.name,
            "verdict": verdict(result),
            "rule": RULE,
            "grid": result.grid,
            "spectral": _method_numbers(result.spectral) | {"ranks": result.edit.ranks},
            "mean_difference": _method_numbers(result.steering),
            "random_effects": result.random_effects,
            "named_source": result.named_source.interval,
            "contributions": {name: contribution_numbers(found) for name, found in result.contributions.items()},
            "shuffled_effects": result.spectral.effect.control_effects,
            "p_value": result.spectral.effect.p_value,
            "answers": result.answers,
            "answer_counts": answer_counts(result.answers),
            "world_seed": bed.world.seed,
            "provenance": result.edit.provenance,
            "versions": versions(),
        },
    )
    result.edit.save(folder / EDIT)
    write_atomically(folder / "report.md", _markdown(result))


def _method_numbers(method: MethodResult) -> dict[str, Any]:
    names = ("before", "after", "change")
    return {
        "options": method.options,
        "effect": {"before": method.effect.before, "after": method.effect.after, "interval": method.effect.interval},
        "mass": {"before": method.effect.before_mass.mean(), "after": method.effect.after_mass.mean()},
        "items": method.effect.to_frame().to_dict(orient="records"),
        **{name: dict(zip(names, getattr(method, name), strict=True)) for name in ("mc1", "mc2", "loss")},
    }


def _markdown(result: DemoResult) -> str:
    answers = [
        {
            "question": answer["question"],
            "before": answer["before"],
            "after": answer["after"],
            result.behaviour.target: answer["target"],
            result.behaviour.foil: answer["foil"],
        }
        for answer in shown_answers(result.answers)
    ]
    allowed = sorted((row for row in result.grid if row["allowed"]), key=lambda row: -row["margin"])
    parts = [
        "# An edit of the shipped model\n",
        f"{verdict(result)}\n",
        markdown_table(comparison_rows(result)) + "\n",
        _legend(result.behaviour),
        f"Chosen on dev, by {RULE}: {_chosen(result)}.\n",
        f"## Greedy answers\n\n{answers_sentence(result)}\n",
        markdown_table(answers) + "\n",
        *(f"## {caption}\n\n![{caption}]({name})\n" for name, caption in FIGURES.items()),
        "## What carries the effect, in numbers\n",
        *(line for contributions in result.contributions.values() for line in section(contributions, rows=6)),
        f"## The ten best settings on dev (of {len(result.grid)}; mass at least {MINIMUM_MASS:.0%} of before)\n",
        markdown_table(allowed[:10]) + "\n" if allowed else "The rule admitted none.\n",
    ]
    return "\n".join(parts)
