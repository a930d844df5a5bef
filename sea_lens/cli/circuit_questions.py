"""The questions of `sea-lens circuit`: what each asks of an edit, and how its answer reads.

An answer is a table, figures, and sentences that are computed from the table. A number stands beside its interval over
contrasts, and beside what the same measurement gives of the control edits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .._support.tables import rows_of
from ..contributions.directions import direction_contributions
from ..contributions.freezing import frozen
from ..contributions.frozen_results import FREEZES
from ..contributions.heads import head_contributions
from ..contributions.interacting import interactions
from ..contributions.layers import layer_contributions
from ..contributions.mediating import mediation
from ..contributions.patching import all_heads
from ..contributions.recovering import DRAWS, recovery
from ..contributions.streaming import stream_contributions
from ..contributions.token_by_token import token_contributions
from ..contributions.truncating import truncation
from ..contributions.truncation_results import displaced
from ..contributions.virtual import virtual_weights
from ..edits.activation import ActivationEdit
from ..edits.base import Edit
from ..evaluation.dosing import dose
from ..measure.effects import effect
from ..models.lens import Lens
from ..paper.findings import Finding
from ..texts.demonstrations import Contrasts, Demonstrations
from .circuit_shares import few_nodes, few_planes
from .circuit_words import (
    NAMED,
    by_size,
    changed_most,
    measured,
    of_the_whole,
    sentence,
    told_of,
    told_of_pairs,
    verdict,
)

# Runs of a contrast up to which heads and places are patched one by one, for the edit and each of its controls.
MOST_PATCHED = 30_000
# Prompts that are continued, and how far.
PROMPTS, NEW_TOKENS = 16, 8
STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0)
SHARE = 0.8


@dataclass(frozen=True)
class Subject:
    """What the questions are asked of.

    Attributes:
        model: a TransformerLens model.
        edit: the edit.
        contrasts: what its effect is measured on.
        control: edits beside it, such as fits to shuffled demonstrations; none where nobody knows what it was fitted
            from.
        where: layers, strength, combine and positions as the user gives them.
        draws: random orders of heads and MLPs beside that of the edit.
        demonstrations: what it was fitted from, to name those that a direction fires on.
        batch_size: sequences at a time.
        prepend_bos: one BOS in front of every text, where the tokenizer has one.
    """

    model: Any
    edit: Edit
    contrasts: Contrasts
    control: Sequence[Edit] = ()
    where: Mapping[str, Any] | None = None
    demonstrations: Demonstrations | None = None
    batch_size: int = 16
    prepend_bos: bool = True
    draws: int = DRAWS

    @property
    def common(self) -> dict[str, Any]:
        """Arguments of every analysis."""
        beside = {"batch_size": self.batch_size, "prepend_bos": self.prepend_bos, "control": self.control}
        return {**(self.where or {}), **beside}

    def is_quick(self, runs: int) -> bool:
        """Whether so many runs of each contrast, under the edit and each control, are few enough."""
        return runs * len(self.contrasts) * (1 + len(self.control)) <= MOST_PATCHED * 16


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        name: of its files.
        asked: the question.
        answer: measures it.
    """

    name: str
    asked: str
    answer: Callable[[Subject], Finding]


def what_it_does(one: Subject) -> Finding:
    """The effect, and what becomes of it at other strengths."""
    found = effect(one.model, one.edit, one.contrasts, **one.common)
    where = {name: value for name, value in (one.where or {}).items() if name != "strength"}
    beside = {"batch_size": one.batch_size, "prepend_bos": one.prepend_bos, "control": one.control}
    doses = dose(one.model, one.edit, one.contrasts, STRENGTHS, **where, **beside)
    worse = float((found.items < 0).double().mean())
    lines = [
        f"{sentence(str(found))}.",
        f"It moves {worse:.0%} of them away from the target.",
    ]
    best = max(rows_of(doses.to_frame()), key=lambda row: abs(row["effect"]))
    tried = ", ".join(f"{strength:g}" for strength in STRENGTHS)
    lines.append(
        f"Of the strengths {tried} the effect is furthest from 0 at {best['strength']:g}: {measured(best, 'effect')}."
    )
    captions = {"effect": "The contrasts with the edit and without.", "dose": "The effect against the strength."}
    return Finding(doses.to_frame(), "\n".join(lines), {"effect": found.plot(), "dose": doses.plot()}, captions)


def which_layers(one: Subject) -> Finding:
    """Layers by themselves, and in pairs."""
    # What changes no activations has no path to follow, and layers that can be on or off.
    method = "path" if isinstance(one.edit, ActivationEdit) else "shapley"
    found = layer_contributions(one.model, one.edit, one.contrasts, method, **one.common)
    frame = found.to_frame().assign(what="layer")
    lines = told_of(found, "layers")
    figures = {"layers": found.plot()}
    if len(found.layers) > 1:
        pairs = interactions(one.model, one.edit, one.contrasts, **one.common)
        figures["pairs"] = pairs.plot()
        frame = pd.concat([frame, pairs.to_frame().assign(what="Shapley value or interaction")], ignore_index=True)
        lines.append(told_of_pairs(pairs))
    return Finding(frame, "\n".join(lines), figures)


def which_directions(one: Subject) -> Finding:
    """Net directions, with what they stand for."""
    found = direction_contributions(one.model, one.edit, one.contrasts, **one.common, demonstrations=one.demonstrations)
    lines = told_of(found, "shares of directions, norms and centres")
    if (alike := found.details.get("most_alike")) is not None:
        names = " and ".join(found.named(label) for label in alike)
        share = found.details["most_alike_share"]
        lines.append(f"Of the five largest {names} are most alike: they share {share:.0%} of their direction (cos²).")
    for label, about in list(found.descriptions.items())[:NAMED]:
        texts = [text.strip() for text in (*(text for text, _ in about.moved[:2]), *about.texts[:1])]
        raised = " ".join(token for token, _ in about.raises[:5])
        lines.append(f"{sentence(found.named(label))} raises {raised}, and moves most at: {' | '.join(texts)}.")
    return Finding(by_size(found.to_frame()), "\n".join(lines), {"directions": found.plot()})


def how_few_directions(one: Subject) -> Finding:
    """Edits of the first net planes."""
    found = truncation(one.model, one.edit, one.contrasts, **one.common)
    frame = found.to_frame()
    lines = few_planes(found, SHARE)
    for row in rows_of(frame)[: NAMED + 1]:
        lines.append(f"{row['k']}: {measured(row, 'effect')}; {displaced(row['displacement'])}.")
    return Finding(frame, "\n".join(lines), {"truncation": found.plot()})


def who_writes_and_reads(one: Subject) -> Finding:
    """Heads by their weights."""
    where = {name: value for name, value in (one.where or {}).items() if name in ("layers", "combine")}
    found = virtual_weights(one.model, one.edit, **where, control=one.control)
    frame = found.to_frame().sort_values("ratio", ascending=False, kind="stable")
    lines = [str(found) + "."]
    if one.control:
        about = frame.rename(columns={"control_p_corrected": "p_corrected", "p_corrected": "p_of_random"})
        lines.append(verdict(about, "entries", found.n_controls))
    return Finding(frame, "\n".join(lines), {"weights": found.plot()})


def where_in_the_text(one: Subject) -> Finding:
    """The stream by layer and position."""
    lens = Lens.of(one.model)
    longest = max(len(contrast.prompt.split()) for contrast in one.contrasts)
    method = "sufficiency" if one.is_quick(lens.n_layers * longest * 2) else "gradient"
    found = stream_contributions(one.model, one.edit, one.contrasts, method, **one.common)
    frame = by_size(found.to_frame()).query("value != 0")
    last = lens.n_layers - 1
    lines = [f"By {method}."]
    if any(layer == last for layer, _ in found.labels):
        lines.append(f"Behind layer {last} the logits alone read the stream, so that places there are no find.")
    lines += told_of(found, "places", among=[label for label in found.labels if label[0] < last])
    caption = "The stream that is exchanged, by layer and position; 0 is the last token of the prompt."
    return Finding(frame, "\n".join(lines), {"stream": found.plot()}, {"stream": caption})


def which_heads(one: Subject) -> Finding:
    """Heads, by pattern and by value where that is quick."""
    quick = one.is_quick(3 * len(all_heads(Lens.of(one.model))))
    frames, lines, figures = [], [], {}
    for method in ("sufficiency", "pattern", "value") if quick else ("gradient",):
        found = head_contributions(one.model, one.edit, one.contrasts, method, **one.common)
        frames.append(found.to_frame().assign(method=method))
        figures[method] = found.plot()
        lines += [f"{method}", *told_of(found, "heads")]
    return Finding(pd.concat(frames, ignore_index=True), "\n".join(lines), figures)


def by_which_way(one: Subject) -> Finding:
    """Edges from the edited layers into heads, MLPs and logits."""
    found = mediation(one.model, one.edit, one.contrasts, **one.common)

    frame = by_size(found.to_frame())
    lines = told_of(found, "ways")
    if (correlation := found.details.get("correlation")) is not None:
        lines.append(
            f"Estimated by one backward pass; the {len(found.details['edges'])} largest patched exactly correlate with "
            f"that at {correlation:.2f}."
        )
    return Finding(frame, "\n".join(lines), {"ways": found.plot()})


def what_is_needed(one: Subject) -> Finding:
    """Parts of the whole model held."""
    found = frozen(one.model, one.edit, one.contrasts, **one.common)
    frame = found.to_frame()
    lines = [f"Without {FREEZES[row['held']]}, what is lost is {measured(row)}." for row in rows_of(frame)]
    return Finding(frame, "\n".join([*lines, verdict(frame, "parts", found.n_controls)]), {"frozen": found.plot()})


def how_few_heads(one: Subject) -> Finding:
    """Recovery by heads and MLPs, beside random sets and those of controls."""
    frames, lines, figures = [], [], {}
    for direct in (True, False):
        found = recovery(one.model, one.edit, one.contrasts, "greedy", **one.common, direct=direct, draws=one.draws)
        lines += few_nodes(found, SHARE)
        frames.append(found.to_frame().assign(circuit="with the edit" if direct else "nodes alone"))
        figures["with_edit" if direct else "alone"] = found.plot()
    on = " On the half of the contrasts that nodes were not chosen on." if found.held_out else ""
    captions = {
        "with_edit": f"The edit and k nodes act, everything else is held as it was.{on}",
        "alone": f"The k nodes have their edited values in the unedited run.{on}",
    }
    return Finding(pd.concat(frames, ignore_index=True), "\n".join(lines), figures, captions)


def what_is_written(one: Subject) -> Finding:
    """Each token of what the edited model writes."""
    prompts = [contrast.prompt for contrast in one.contrasts][:PROMPTS]
    found = token_contributions(one.model, one.edit, prompts, **one.common, max_new_tokens=NEW_TOKENS)
    frame = found.to_frame()
    row = {"value": found.effect, **of_the_whole(found)}
    lines = [f"The log-probability of what it writes behind {len(found.texts)} prompts changes by {measured(row)}."]
    if one.control:
        lines.append(
            "Each control has written its own text, and its number is the change of that. Tokens and layers have none: "
            "on tokens that this edit has chosen it comes first, whatever the labels say."
        )
    changes = found.changes().sum(1)
    most = int(changes.abs().argmax())
    lines += changed_most(found.texts[most], changes[most].item())
    lines += told_of(found, "tokens and layers", with_verdict=False)
    figures = {"tokens": found.plot(), "most": found.plot(prompt=most)}
    captions = {"tokens": "Means by place.", "most": "The continuation that is changed most."}
    return Finding(frame, "\n".join(lines), figures, captions)


QUESTIONS = (
    Question("effect", "What does the edit do?", what_it_does),
    Question("layers", "Which layers carry it?", which_layers),
    Question("directions", "Which directions?", which_directions),
    Question("few_directions", "How few directions suffice?", how_few_directions),
    Question("weights", "Which heads write and read these directions?", who_writes_and_reads),
    Question("stream", "Where in the text does it pass?", where_in_the_text),
    Question("heads", "Which heads pass it on, by their pattern or by their values?", which_heads),
    Question("ways", "By which way does it enter heads, MLPs and logits?", by_which_way),
    Question("frozen", "What is lost when a part of the model is held?", what_is_needed),
    Question("few_heads", "How few heads and MLPs suffice?", how_few_heads),
    Question("written", "What does it do to each token that the model writes?", what_is_written),
)
