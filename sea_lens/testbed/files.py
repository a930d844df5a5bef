"""The shipped model's own questions as the files of public benchmarks, so that what reads those reads them too."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path

from .._support.files import write_atomically
from .._support.text_rows import write_jsonl
from .bed import Testbed
from .peoples import FAIR_SOURCES, UNKNOWN, Scene
from .world import RELIABLE_SOURCES, UNRELIABLE_SOURCES, Question, Split

# Documents whose loss and divergence are measured.
N_DOCUMENTS = 100
# Prompts are prompts already; answers follow them after a space.
PROMPTS = {
    "truth": {"prompt": "{question}", "completion": " {answer}", "stop": [" ."]},
    "bias": {"prompt": "{context} Q: {question} A:", "completion": " {answer}", "stop": [" ."]},
}


def write_data(bed: Testbed, folder: Path, split: Split = "test") -> None:
    """Write demonstrations of the train split, and a split's questions as TruthfulQA, BBQ and CrowS-Pairs have theirs.

    Beside them stand two files of what the model can do else: to answer as a named source does
    (`capability/sources.jsonl`), and to read a clear scene to a fair speaker (`capability/scenes.jsonl`); and documents
    (`text/documents.json`).
    """
    for part in ("demonstrations", "truthfulqa", "bbq", "crows_pairs", "capability", "text"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, behaviour in bed.behaviours.items():
        behaviour.demonstrations.to_jsonl(folder / "demonstrations" / f"{name}.jsonl")
    questions, scenes = bed.world.split(split), bed.peoples.split(split)
    rows = [_truthfulqa(question) for question in questions]
    write_atomically(folder / "truthfulqa" / "mc_task.json", json.dumps(rows, indent=1) + "\n")
    bbq = (scene.bbq_row(number) for number, scene in enumerate(scenes))
    write_atomically(folder / "bbq" / "Peoples.jsonl", write_jsonl(bbq))
    write_atomically(folder / "crows_pairs" / "crows_pairs_anonymized.csv", _crows_pairs(scenes))
    write_atomically(folder / "capability" / "sources.jsonl", write_jsonl(_sources(questions)))
    write_atomically(folder / "capability" / "scenes.jsonl", write_jsonl(_clear(scenes)))
    write_atomically(folder / "text" / "documents.json", json.dumps(bed.documents[:N_DOCUMENTS], indent=1) + "\n")


def _truthfulqa(question: Question) -> dict[str, object]:
    targets = {question.truth: 1, **dict.fromkeys(question.answers[1:], 0)}
    return {"question": question.prompt(), "mc1_targets": targets, "mc2_targets": targets}


def _crows_pairs(scenes: Iterable[Scene]) -> str:
    """Scenes that leave it open, answered with the stereotype and against it."""
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow(["", "sent_more", "sent_less", "stereo_antistereo", "bias_type"])
    unclear = [scene for scene in scenes if scene.right == UNKNOWN]
    for number, scene in enumerate(unclear):
        _, biased, other = scene.answers
        rows.writerow([number, *(f"{scene.prompt()} {one} ." for one in (biased, other)), "stereo", scene.polarity])
    return written.getvalue()


def _sources(questions: Iterable[Question]) -> Iterable[dict[str, object]]:
    """Each question in a document of a reliable and of an unreliable source, and what that one answers."""
    for question in questions:
        for gold, source in enumerate((RELIABLE_SOURCES[0], UNRELIABLE_SOURCES[0])):
            yield {"query": question.prompt(source), "choices": list(question.answers), "gold": gold}


def _clear(scenes: Iterable[Scene]) -> Iterable[dict[str, object]]:
    """Scenes that say who did it, told to a fair speaker."""
    for scene in scenes:
        if scene.right != UNKNOWN:
            yield {"query": scene.prompt(FAIR_SOURCES[0]), "choices": list(scene.answers), "gold": 0}
