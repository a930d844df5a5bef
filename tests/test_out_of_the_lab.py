"""The commands that write edits of other methods, controls, checkpoints and results of the harness, as typed."""

import json
import sys

import pytest
import tiny
import torch
from tiny import contrasts, demonstrations
from transformers import AutoModelForCausalLM

import sea_lens as sl
from sea_lens.cli import main
from sea_lens.cli.methods_to_fit import METHODS

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def run(monkeypatch, capsys):
    """run("fit", "--model", …) gives (exit status, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sea-lens", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run


@pytest.fixture
def files(tmp_path, model_folders):
    demonstrations().to_jsonl(tmp_path / "demos.jsonl")
    contrasts().to_jsonl(tmp_path / "contrasts.jsonl")
    model = sl.load_model(model_folders["llama"])
    edit = sl.fit(sl.capture(model, demonstrations(), progress=False), rank=4)
    edit.with_defaults(layers="last-2", strength=0.5).save(tmp_path / "edit.safetensors")
    return {
        "model": model_folders["llama"],
        "demos": tmp_path / "demos.jsonl",
        "contrasts": tmp_path / "contrasts.jsonl",
        "edit": tmp_path / "edit.safetensors",
        "folder": tmp_path,
        "loaded": model,
    }


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_fitted_by_the_command_as_by_its_function(run, files, method):
    if method == "leace":
        pytest.importorskip("concept_erasure")
    if method == "lora":
        pytest.importorskip("peft")
    out = files["folder"] / f"{method}.safetensors"
    more = ["--heads", 2] if method == "iti" else []
    code, _, error = run(
        *("fit", "--model", files["model"], "--demonstrations", files["demos"], "--out", out, "--method", method), *more
    )
    assert code == 0, error
    found, model, demos = sl.load_edit(out), files["loaded"], demonstrations()
    functions = {
        "iti": lambda: sl.iti(model, demos, heads=2, progress=False),
        "leace": lambda: sl.leace(model, demos, progress=False),
        "lora": lambda: sl.lora(model, demos, progress=False),
    }
    expected = functions.get(method, lambda: getattr(sl, method)(sl.capture(model, demos, progress=False)))()
    assert type(found) is type(expected)
    contrast = contrasts()
    assert sl.effect(model, found, contrast).effect == pytest.approx(
        sl.effect(model, expected, contrast).effect, abs=1e-4
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "magic"], "--method 'magic': expected one of spectral"),
        (["--method", "leace", "--centre"], "--centre: --method leace has no such option"),
        (["--method", "iti", "--site", "z"], "--site: --method iti has no such option"),
        (["--heads", "3"], "--heads: --method spectral has no such option"),
        (["--method", "lora", "--rank", "3,4"], "this method has one rank"),
    ],
)
def test_options_that_a_method_does_not_have_are_refused(run, files, more, said):
    out = files["folder"] / "other.safetensors"
    code, _, error = run("fit", "--model", files["model"], "--demonstrations", files["demos"], "--out", out, *more)
    assert code == 2
    assert said in error
    assert not out.exists()


@pytest.mark.parametrize("kind", ["permuted", "random", "resampled"])
def test_controls_are_written_and_an_effect_stands_beside_them(run, files, kind):
    out = files["folder"] / kind
    needed = [] if kind == "random" else ["--model", files["model"], "--demonstrations", files["demos"]]
    code, _, error = run("control", "--edit", files["edit"], "--out", out, "--kind", kind, "--draws", 3, *needed)
    assert code == 0, error
    edits = [sl.SpectralEdit.load(path) for path in sorted(out.glob("*.safetensors"))]
    own = sl.SpectralEdit.load(files["edit"])
    assert len(edits) == 3
    assert all(isinstance(one, sl.SpectralEdit) and one.ranks == own.ranks for one in edits)
    assert all(one.defaults == own.defaults for one in edits)
    expected = {
        "permuted": lambda: sl.permuted(files["loaded"], own, demonstrations(), 3),
        "random": lambda: [sl.randomised(own, seed) for seed in range(3)],
        "resampled": lambda: sl.resampled(files["loaded"], own, demonstrations(), 3),
    }[kind]()
    for ours, theirs in zip(edits, expected, strict=True):
        for side, other in zip(ours.projections(1), theirs.projections(1), strict=True):
            torch.testing.assert_close(side, other)
    arguments = ("effect", "--model", files["model"], "--edit", files["edit"], "--contrasts", files["contrasts"])
    code, printed, error = run(*arguments, "--control", out)
    assert code == 0, error
    assert str(sl.effect(files["loaded"], own, contrasts(), control=edits)).splitlines()[0] in printed


def test_control_refuses_what_it_cannot_do(run, files):
    (files["folder"] / "held").mkdir()
    (files["folder"] / "held" / "old.safetensors").write_bytes(b"")
    code, _, error = run("control", "--edit", files["edit"], "--out", files["folder"] / "held", "--kind", "random")
    assert code == 2
    assert "holds edits already" in error
    out = files["folder"] / "controls"
    for more, said in (
        (["--kind", "wild"], "--kind 'wild'"),
        ([], "expected --model and --demonstrations"),
        (["--kind", "random", "--model", files["model"]], "expected neither"),
    ):
        code, _, error = run("control", "--edit", files["edit"], "--out", out, *more)
        assert code == 2
        assert said in error
    assert not out.exists()


def test_export_writes_a_checkpoint_that_does_what_the_edit_does(run, files):
    out = files["folder"] / "edited"
    arguments = ("export", "--model", files["model"], "--edit", files["edit"], "--out", out)
    code, _, error = run(*arguments)
    assert code == 2
    assert "average" in error
    # An empty folder that was made for it goes again as the process ends.
    assert list(out.glob("*")) == []
    code, printed, error = run(*arguments, "--combine", "average", "--shard-size", "40KB")
    assert code == 0, error
    assert "exact" in printed
    tokens, edit = tiny.tokens(), sl.SpectralEdit.load(files["edit"])
    found = AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad(), edit.applied(files["loaded"], combine="average"):
        expected = files["loaded"](tokens, return_type="logits")
    with torch.no_grad():
        assert (found(tokens).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    about = json.loads((out / "sea_lens.json").read_text())
    assert about["edit"]["sha256"] == edit.digest
    assert about["layers"] == "last-2"
    code, _, error = run(*arguments, "--combine", "average")
    assert code == 2
    assert "expected a new or an empty folder" in error


def test_export_tells_how_near_the_scaled_fold_is(run, files):
    out = files["folder"] / "scaled"
    code, printed, error = run(
        *("export", "--model", files["model"], "--edit", files["edit"], "--out", out),
        *("--demonstrations", files["demos"], "--contrasts", files["contrasts"]),
    )
    assert code == 0, error
    assert "not exact" in printed
    assert "KL to the edited model" in printed
    about = json.loads((out / "sea_lens.json").read_text())
    assert set(about["scales"]) == {"1", "2"}
    edit = sl.SpectralEdit.load(files["edit"])
    effect = sl.effect(files["loaded"], edit, contrasts()).effect
    assert about["effects"]["edit"] == pytest.approx(effect, abs=1e-5)
    # What the file says of the folded weights, measured on the checkpoint itself.
    folded = sl.load_model(out)
    plain = sl.effect(files["loaded"], edit, contrasts()).before_items
    with torch.no_grad():
        held = sl.effect(folded, edit.for_any_model(), contrasts(), strength=0.0).before_items
    assert about["effects"]["folded"] == pytest.approx((held - plain).mean().item(), abs=1e-4)


TASK = """
task: local_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""


@pytest.mark.parametrize("edited", [False, True])
def test_the_harness_by_command_finds_what_evaluate_finds(run, files, edited):
    pytest.importorskip("lm_eval")
    rows = [
        {"query": tiny.sentence(i, 4), "choices": [tiny.sentence(50 + i, 1), tiny.sentence(90 + i, 2)], "gold": i % 2}
        for i in range(8)
    ]
    data = files["folder"] / "choices.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (files["folder"] / "local_choices.yaml").write_text(TASK.format(path=data))
    out = files["folder"] / "harness"
    more = ["--edit", files["edit"], "--strength", 2.0] if edited else []
    common = ("harness", "--model", files["model"], "--include-path", files["folder"], "--out", out, "--bootstrap", 0)
    code, printed, error = run(*common, "--tasks", "local_choices", "--samples", *more)
    assert code == 0, error
    assert "local_choices" in printed
    found = json.loads((out / "results.json").read_text())
    edit = sl.SpectralEdit.load(files["edit"]) if edited else None
    options = {"edit": edit, "strength": 2.0} if edited else {}
    ours = sl.evaluate(files["loaded"], "capability", data, **options, progress=False)
    assert found["results"]["local_choices"]["acc,none"] == ours.scores["accuracy"]
    samples = sorted(found["samples"]["local_choices"], key=lambda sample: sample["doc_id"])
    for item, sample in zip(ours.items, samples, strict=True):
        scores = [float(response[0][0]) for response in sample["resps"]]
        assert scores == pytest.approx(item["log_probs"], abs=1e-4)
    assert found["sea_lens"]["edit"]["sha256"] == (sl.SpectralEdit.load(files["edit"]).digest if edited else None)
    if edited:
        return
    # Lists all that the harness has.
    code, _, error = run(*common, "--tasks", "no_such_task")
    assert code == 2
    assert "the harness has no such task" in error
