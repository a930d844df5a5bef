"""Files that real savers write, and hostile ones, made anew by code."""

import csv
import io
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import sea_lens as sl
from sea_lens.evaluation.benchmark import Benchmark
from sea_lens.evaluation.capability import Capability
from sea_lens.evaluation.journal import Journal
from sea_lens.evaluation.tuning_results import Tuning
from sea_lens.methods.ablated_direction import Ablated
from sea_lens.methods.adapters import Adapter
from sea_lens.methods.concept_erasure import Eraser
from sea_lens.methods.plane_rotation import Plane

GOLDEN = Path(__file__).parents[1] / "golden"
LAYERS, HEADS, WIDTH = 2, 2, 4
MODEL = {"model": {"n_layers": LAYERS, "n_heads": HEADS, "d_head": WIDTH, "d_model": WIDTH}}
IDENTITY = {"data": {"sha256": "ab", "items": 6}, "model": {"predictions": [-1.5, -2.25]}}


@dataclass(frozen=True)
class File:
    """A file of the corpus: its name, which loader reads it, and its content."""

    name: str
    loader: str
    content: bytes


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _axes(units: int) -> torch.Tensor:
    """Two orthonormal columns for each unit."""
    return torch.linalg.qr(_random(units, WIDTH, 2))[0]


def _identical() -> sl.CrossCovariance:
    """Statistics without a feature map."""
    empty = sl.CrossCovariance.empty((0, 1), 1, WIDTH, site="mlp_out", feature=sl.FEATURE_MAPS["identity"])
    neutral, positive, negative = (_random(9, LAYERS, 1, WIDTH, seed=i) for i in range(3))
    return empty.updated(neutral, positive, negative)


def _edits() -> dict[str, Any]:
    three: Any = [_random(9, LAYERS, WIDTH, seed=i) for i in range(3)]
    heads: Any = [_random(9, LAYERS, HEADS, WIDTH, seed=i) for i in range(3)]
    left, right, centre = (_random(1, WIDTH, seed=i) for i in range(3))
    steered = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    accuracies = torch.tensor([[0.5, 0.6], [0.7, 0.9]], dtype=torch.float64)
    adapter = Adapter(_random(2, 5).float(), _random(WIDTH, 2).float())
    spectral = {
        "spectral": sl.fit_activations(*three, rank=(2, 1)),
        "spectral_energy": sl.fit_activations(*three, energy=0.9, centre=True, feature="tanh"),
        "spectral_heads": sl.fit_activations(*heads, rank=1, site="z"),
    }
    return {
        **{name: replace(edit, provenance=MODEL) for name, edit in spectral.items()},
        "mean_difference": sl.MeanDifference("mlp_out", {0: left, 1: right}, {0: 1.0, 1: 2.0}, MODEL),
        "given_vectors": sl.GivenVectors("resid_post", {0: left, 1: right}, None, MODEL),
        "iti": sl.ITI("z", {1: steered * _random(HEADS, WIDTH)}, None, MODEL, ((1, 1),), accuracies),
        "leace": sl.LEACE("mlp_out", {0: Eraser(left / (left * right).sum(), right, centre)}, MODEL),
        "lora": sl.LoRA({0: adapter}, (0.5, 0.25), MODEL),
        "ablation": sl.DirectionalAblation("z", {1: Ablated(_axes(HEADS)[..., 0], _random(HEADS))}, MODEL),
        "generalised_eigen": replace(sl.generalised_eigen(_identical(), rank=1), provenance=MODEL),
        "angular_steering": sl.AngularSteering("mlp_out", {0: Plane(*_axes(1).unbind(-1))}, 150.0, MODEL),
    }


def _covariance() -> sl.CrossCovariance:
    empty = sl.CrossCovariance.empty(
        (0, 1), 1, WIDTH, site="mlp_out", feature=sl.FEATURE_MAPS["tanh"], provenance=dict(MODEL)
    )
    neutral, positive, negative = (_random(5, LAYERS, 1, WIDTH, seed=i) for i in range(3))
    return empty.updated(neutral, positive, negative)


def _evaluation(benchmark: Benchmark | None = None) -> sl.Evaluation:
    rows = [
        {
            "row": i + 1,
            "query": f"w{i}",
            "choices": ["a", "b"],
            "gold": i % 2,
            "log_probs": [-1.0 - i, -2.0],
            "tokens": [1, 1],
            "cut_tokens": 0,
            "answer": 0,
            "answer_normalised": 0,
            "accuracy": float(i % 2 == 0),
            "accuracy_normalised": float(i % 2 == 0),
        }
        for i in range(6)
    ]
    return sl.Evaluation(benchmark or Capability(), rows, {"benchmark": "capability", "data": IDENTITY["data"]})


def tuning() -> Tuning:
    """A small result of `tune`."""
    import pandas as pd

    common = {"feature": "identity", "energy": 0.9, "centre": False, "layers": "all"}
    settings = [
        {**common, "strength": 0.5, "accuracy": 0.5, "kl": 0.01, "allowed": True, "chosen": True},
        {**common, "strength": 1.0, "accuracy": 0.9, "kl": 0.5, "allowed": False, "chosen": False},
    ]
    options, before = {"layers": "all", "strength": 0.5}, {"accuracy": 0.4, "kl": 0.0}
    rule = "largest accuracy, kl at most 0.1"
    return Tuning(pd.DataFrame(settings), rule, _edits()["spectral"], options, before, "accuracy", {"kl": 0.1})


def _unsealed(content: bytes) -> bytes:
    """A result as version 0.1.0 wrote it."""
    found = json.loads(content)
    return json.dumps({name: value for name, value in found.items() if name not in ("form", "sha256")}).encode()


def _jsonl(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _csv(*rows: dict[str, Any]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _texts() -> list[File]:
    demos = [{"neutral": f"w{i}", "positive": f"w{i} yes", "negative": f"w{i} no"} for i in range(3)]
    contrasts = [{"prompt": f"Q {i}:", "target": " a", "foil": " b"} for i in range(3)]
    asked = {"question": "Why “so”?", "right_answer": "because", "hallucinated_answer": "never", "knowledge": "k"}
    columns = {
        "Question": "Why?",
        "Best Answer": "So.",
        "Correct Answers": "So.; Because.",
        "Incorrect Answers": "No.; Never.",
    }
    targets = {"mc1_targets": {"So.": 1, "No.": 0}, "mc2_targets": {"So.": 1, "Yes.": 1, "No.": 0}}
    hub = {"choices": ["So.", "No.", "Never."], "labels": [1, 0, 0]}
    bbq = {
        "context": "Tom met Ann.",
        "question": "Who was late?",
        "ans0": "Tom",
        "ans1": "Ann",
        "ans2": "Unknown",
        "label": 2,
        "question_polarity": "neg",
        "context_condition": "ambig",
        "category": "Gender_identity",
        "answer_info": {"ans0": ["Tom", "M"], "ans1": ["Ann", "F"], "ans2": ["Unknown", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["F"]},
    }
    pairs = {"sent_more": "a b", "sent_less": "a c", "stereo_antistereo": "stereo", "bias_type": "age"}
    choices = [{"query": "Q:", "choices": ["x", "y"], "gold": i % 2} for i in range(3)]
    solved = {"question": "1 + 1?", "answer": "It is 2.\n#### 1,002.5"}
    prompt = {
        "prompt": "Q: {question}\nA:",
        "completion": " {answer}",
        "examples": [{"question": "1", "answer": "2"}],
        "stop": ["\n"],
        "instruction": "Say.",
    }
    question = {"question": "Why?", **targets}
    return [
        File("demos.jsonl", "demonstrations", _jsonl(*demos)),
        File("contrasts.jsonl", "contrasts", _jsonl(*contrasts)),
        File("halueval.json", "halueval", _jsonl(asked, asked)),
        File("truthfulqa.csv", "truthfulqa_demonstrations", _csv(columns, columns)),
        File("bbq.jsonl", "bbq_demonstrations", _jsonl(bbq, bbq)),
        File("mc_task.json", "task:truthfulqa", json.dumps([question, question]).encode()),
        File("mc_hub.jsonl", "task:truthfulqa", _jsonl({"question": "Why?", "mc1_targets": hub, "mc2_targets": hub})),
        File("truthfulqa_task.csv", "task:truthfulqa", _csv(columns, columns)),
        File("bbq_task.jsonl", "task:bbq", _jsonl(bbq, {**bbq, "label": 1, "context_condition": "disambig"})),
        File("crows.csv", "task:crows_pairs", _csv(pairs, {**pairs, "stereo_antistereo": "antistereo"})),
        File("rows.jsonl", "task:capability", _jsonl(*choices)),
        File("rows.json", "task:capability", json.dumps(choices).encode()),
        File("gsm.jsonl", "task:gsm8k", _jsonl(solved, {**solved, "answer": "#### -$9{,}500"})),
        File("text.txt", "task:perplexity", "Once upon\na time…\n".encode()),
        File("texts.json", "task:perplexity", json.dumps(["one text", {"text": "another"}]).encode()),
        File("prompt.json", "prompt", json.dumps(prompt).encode()),
    ]


def _hostile(sound: list[File]) -> list[File]:
    """For every loader, what has hung or crashed readers of such files."""
    deep = b"[" * 3000
    wide = b"\n".join(b'{"row": %d, "k%d": 1}' % (i, i) for i in range(300))
    bombs = [
        deep,
        b'{"a":' * 3000,
        b"9" * 6000,
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf" + deep,
        b"\x00" * 4096,
        b'{"neutral": "\\ud800", "positive": "x", "negative": "y"}',
        b'{"prompt": "{question:1000000000}", "completion": "{answer:>99999999}"}',
        b'{"prompt": "{question.__class__.__mro__}"}',
        b'"' + b"\\u0000" * 500 + b'"',
        b"[1]",
        b"NaN",
        wide,
        (2**63 - 1).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + deep[:100],
        len(deep).to_bytes(8, "little") + deep,
        b",".join([b"a"] * 5000),
        b'"' * 5001,
    ]
    header = {"t": {"dtype": "F64", "shape": [2**40, 2**40], "data_offsets": [0, 8]}, "__metadata__": {}}
    for shape in ([2**40, 2**40], [0, 2**62], [1] * 3000, [-1], [2**70]):
        header["t"]["shape"] = shape
        text = json.dumps(header).encode()
        bombs.append(len(text).to_bytes(8, "little") + text + bytes(8))
    loaders = {file.loader: file.name for file in sound}
    return [
        File(f"hostile_{number}_{name}", loader, bomb)
        for loader, name in loaders.items()
        for number, bomb in enumerate(bombs)
    ]


def corpus() -> list[File]:
    """The sound files; the same bytes every time."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        for name, edit in _edits().items():
            edit.save(path)
            found.append(File(f"{name}.safetensors", "edit", path.read_bytes()))
        _covariance().save(path)
        found.append(File("covariance.safetensors", "covariance", path.read_bytes()))
        _evaluation().save(path)
        found.append(File("evaluation.json", "evaluation", path.read_bytes()))
        found.append(File("old_evaluation.json", "evaluation", _unsealed(path.read_bytes())))
        path.unlink()
        journal = Journal(path, IDENTITY)
        for part in range(3):
            journal.add(part, _evaluation().items[2 * part : 2 * part + 2])
        found.append(File("journal", "journal", path.read_bytes()))
        tuning().save(folder)
        found.append(File("results.json", "tuning", Path(folder, "results.json").read_bytes()))
    for old in sorted(GOLDEN.glob("*/*.safetensors")):
        # The smallest, so that many inputs can be tried.
        if old.stat().st_size < 12_000:
            found.append(File(f"old_{old.name}", "edit", old.read_bytes()))
    return [*found, *_texts()]


def hostile() -> list[File]:
    """Files that no saver writes."""
    return _hostile(corpus())
