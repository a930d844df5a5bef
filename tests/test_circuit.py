"""The page of an edit's circuit: every question, on an edit of the user's own and on the shipped model's."""

import json
import re
import warnings

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from tiny import contrasts, demonstrations, fitted
from typer.testing import CliRunner

import sea_lens as sl
from sea_lens.cli import circuit_words as words
from sea_lens.cli.circuit_questions import QUESTIONS, Subject
from sea_lens.cli.commands import app
from sea_lens.contributions.token_results import TextTokens

pytestmark = pytest.mark.model
# What a table of each question calls the range of the controls.
RANGE = {"control_low", "control_high"}
ALONE = ("--edit", "--model", "--contrasts")


@pytest.fixture(scope="module")
def subject(load_tiny):
    model = load_tiny()
    edit = fitted(model, rank=(3, 3))
    control = [sl.randomised(edit, seed) for seed in range(2)]
    return Subject(model, edit, contrasts(3), control, {"strength": 1.0}, demonstrations(), 64, draws=2)


@pytest.fixture(scope="module")
def answer(subject):
    kept = {}

    def run(question):
        if question.name not in kept:
            kept[question.name] = question.answer(subject)
            plt.close("all")
        return kept[question.name]

    return run


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda one: one.name)
def test_every_number_stands_beside_its_control(question, answer):
    found = answer(question)
    if question.name == "written":
        # On tokens that the edit has chosen it comes first whatever labels say: the whole alone stands beside theirs.
        assert not RANGE & set(found.table.columns)
        assert "controls " in found.paragraph.splitlines()[0]
    else:
        assert set(found.table.columns) >= RANGE
        assert found.table["control_low"].notna().any()
    assert len(found.paragraph.splitlines()) >= 2
    assert found.figures


def test_sentences_say_what_the_table_has(answer):
    (layers,) = [one for one in QUESTIONS if one.name == "layers"]
    found = answer(layers)
    frame = found.table[found.table["what"] == "layer"]
    largest = frame.loc[frame["value"].abs().idxmax()]
    first = found.paragraph.splitlines()[0]
    assert first.startswith(f"Layer {int(largest['layer'])}: {largest['value']:+.3f} nats")
    assert f"controls {largest['control_low']:+.3f} to {largest['control_high']:+.3f}" in first


def test_an_edit_that_no_control_stands_beside_says_so(subject):
    (heads,) = [one for one in QUESTIONS if one.name == "heads"]
    alone = Subject(subject.model, subject.edit, subject.contrasts, batch_size=32)
    found = heads.answer(alone)
    assert "No control stands beside heads." in found.paragraph
    assert not RANGE & set(found.table.columns)


def test_what_is_beyond_the_controls_is_counted():
    frame = pd.DataFrame({"value": [1.0, 0.1], "p_corrected": [0.05, 0.6]})
    assert words.verdict(frame, "heads", 19) == "1 of 2 heads is beyond the controls (p ≤ 0.05, corrected)."
    assert words.verdict(frame.tail(1), "heads", 19).startswith("None of 1 heads is beyond the controls for certain")
    # Of 18 none could be.
    assert words.verdict(frame.tail(1), "heads", 18).startswith("18 controls cannot show which of 1 heads")
    assert words.verdict(frame.drop(columns="p_corrected"), "heads", 0) == "No control stands beside heads."


def test_the_continuation_that_is_changed_most_is_named_with_its_sign():
    logs = torch.tensor([-1.0, -2.0])
    text = TextTokens("w1 w2", " w3 w4", (" w3", " w4"), (" w3", " w9"), logs, logs - 0.5)
    first, second = words.changed_most(text, -1.0)
    assert first == "The change is largest behind “w1 w2”, where it writes “w3 w4”: -1.000 nats."
    assert "prefers “w9” to “w4”" in second
    assert words.changed_most(text, 0.0) == []
    assert words.changed_most(text, -1e-7) == []


def test_the_shipped_models_edits_are_the_default_and_a_second_run_measures_nothing(tmp_path):
    asked = ["circuit", "--out", str(tmp_path), "--questions", "layers,frozen", "--limit", "6", "--control-draws", "1"]
    first = CliRunner().invoke(app, asked)
    assert first.exit_code == 0, first.output
    page = (tmp_path / "index.html").read_bytes()
    for name in ("truth_layers", "truth_frozen", "bias_layers", "bias_frozen"):
        assert f"id='{name}'".encode() in page
        assert f"{name}.csv".encode() in page
    # Nothing is fetched from anywhere.
    assert not re.findall(rb"(?:src|href)='https?:", page)
    second = CliRunner().invoke(app, asked)
    assert second.output.count("there already") == 4
    assert (tmp_path / "index.html").read_bytes() == page
    # A damaged answer is measured anew.
    (tmp_path / "truth_layers.csv").write_text("layer\n")
    assert CliRunner().invoke(app, asked).output.count("there already") == 3
    assert (tmp_path / "index.html").read_bytes() == page


@pytest.fixture
def files(tmp_path, model_folders, load_tiny):
    edit = fitted(load_tiny(), rank=(3, 3))
    edit.save(tmp_path / "edit.safetensors")
    rows = [{"prompt": c.prompt, "target": c.target, "foil": c.foil} for c in contrasts(4)]
    (tmp_path / "contrasts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"--model": str(model_folders["llama"]), "--edit": str(tmp_path / "edit.safetensors")}
    return {**given, "--contrasts": str(tmp_path / "contrasts.jsonl"), "--out": str(tmp_path / "page")}


def run(files, *more, without=()):
    pairs = [part for name, value in files.items() if name not in without for part in (name, value)]
    return CliRunner().invoke(app, ["circuit", "--backend", "bridge", *pairs, *more])


def test_an_edit_of_ones_own(files, tmp_path):
    found = run(files, "--questions", "effect,weights", "--layers", "0,1")
    assert found.exit_code == 0, found.output
    page = (tmp_path / "page" / "index.html").read_text()
    assert "What does the edit do?" in page
    # Where it acts, and not where it was fitted.
    assert "SpectralEdit at mlp_out, applied in layers [0, 1] at strength 1, combine norm, positions all" in page
    assert "No control stands beside it" in page
    assert "swapped by the toss of a coin" not in page


def test_how_an_edit_is_applied_is_said_on_the_page(files, tmp_path):
    options = ["--layers", "1", "--positions", "last_prompt", "--combine", "reverse", "--strength", "-0.5"]
    assert run(files, "--questions", "effect", *options).exit_code == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "applied in layers [1] at strength -0.5, combine reverse, positions last_prompt" in page


def save_demonstrations(path, some):
    rows = [{"neutral": d.neutral, "positive": d.positive, "negative": d.negative} for d in some]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_other_demonstrations_are_warned_of_and_answers_are_not_those_of_the_first(files, tmp_path):
    own = save_demonstrations(tmp_path / "own.jsonl", demonstrations())
    turned = [sl.Demonstration(d.neutral, d.negative, d.positive) for d in demonstrations()]
    other = save_demonstrations(tmp_path / "other.jsonl", turned)
    asked = ("--questions", "directions", "--control-draws", "2")
    with warnings.catch_warnings():
        warnings.simplefilter("error", sl.SeaLensWarning)
        first = run(files, *asked, "--demonstrations", own)
    assert first.exit_code == 0, first.output
    page = (tmp_path / "page" / "index.html").read_text()
    assert "2 edits fitted to demonstrations whose wanted and unwanted texts" in page
    assert "no p-value is below 0.33, so that they cannot show what is: that takes 19." in page
    assert "are not those that it was fitted from" not in page
    assert run(files, *asked, "--demonstrations", own).output.count("there already") == 1
    with pytest.warns(sl.SeaLensWarning, match="the edit was not fitted from these"):
        second = run(files, "--questions", "directions", "--control-draws", "0", "--demonstrations", other)
    assert second.exit_code == 0, second.output
    assert "are not those that it was fitted from" in (tmp_path / "page" / "index.html").read_text()
    # Without controls the demonstrations alone tell the two answers apart.
    assert (
        run(files, "--questions", "directions", "--control-draws", "0", "--demonstrations", own).output.count(
            "there already"
        )
        == 0
    )


def test_layers_of_an_edit_of_weights_are_told_by_shapley_values(load_tiny):
    model = load_tiny()
    edit = sl.lora(model, demonstrations(6), epochs=1, progress=False)
    (layers,) = [one for one in QUESTIONS if one.name == "layers"]
    found = layers.answer(Subject(model, edit, contrasts(3), batch_size=32))
    assert "Layer 0: " in found.paragraph
    plt.close("all")


def test_what_an_edit_does_not_have_is_said_on_the_page(files, tmp_path, load_tiny):
    edit = sl.mean_difference(sl.capture(load_tiny(), demonstrations(8)))
    edit.save(tmp_path / "edit.safetensors")
    found = run(files, "--questions", "directions,layers")
    assert found.exit_code == 0, found.output
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Not run: only a spectral edit has singular directions, got MeanDifference" in page


@pytest.mark.parametrize(
    ("without", "more", "message"),
    [
        (("--edit",), (), "--model, --contrasts without --edit"),
        (("--model",), (), "--edit needs --model and --contrasts"),
        ((), ("--questions", "why"), "--questions"),
        (ALONE, ("--layers", "0"), "expected --edit with these options"),
        (ALONE, ("--no-prepend-bos",), "--no-prepend-bos: the shipped model is read as it is"),
        (ALONE, ("--format", "jsonl"), "--format: the shipped model"),
        (ALONE, ("--device-map", "disk"), "--device-map: the shipped model"),
        (ALONE, ("--max-memory", "0=1GiB"), "--max-memory: the shipped model"),
        ((), ("--control-draws", "5"), "--control-draws is about demonstrations: expected --demonstrations"),
        ((), ("--format", "bbq"), "--format is about demonstrations: expected --demonstrations"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(without, more, message, files):
    found = run(files, *more, without=without)
    assert found.exit_code != 0
    assert message in str(found.exception)
