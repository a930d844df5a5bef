import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import N_CTX, contrasts, demonstrations, sentence
from transformers import PreTrainedTokenizerFast

import sea_lens as sl
from sea_lens.cli import main
from sea_lens.cli.attribution import NAMES

pytestmark = pytest.mark.model
# Measured where they are asked for alone.
ON_REQUEST = {"heads_pattern", "heads_value"}


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
    """Everything that a command needs: model, demonstrations, contrasts, and an edit to write."""
    demonstrations().to_jsonl(tmp_path / "demos.jsonl")
    contrasts().to_jsonl(tmp_path / "contrasts.jsonl")
    return {
        "model": model_folders["llama"],
        "demonstrations": tmp_path / "demos.jsonl",
        "contrasts": tmp_path / "contrasts.jsonl",
        "edit": tmp_path / "edit.safetensors",
        "folder": tmp_path,
    }


def fit_arguments(files, *more):
    return (
        "fit",
        "--model",
        files["model"],
        "--demonstrations",
        files["demonstrations"],
        "--out",
        files["edit"],
        *more,
    )


@pytest.fixture
def fitted_files(files, run):
    assert run(*fit_arguments(files, "--rank", "3,2"))[0] == 0
    return files


def use_arguments(command, files, *more):
    return (command, "--model", files["model"], "--edit", files["edit"], "--contrasts", files["contrasts"], *more)


def test_the_whole_way_from_demonstrations_to_heads(fitted_files, run, load_tiny):
    files = fitted_files
    status, out, _ = run("inspect", files["edit"])
    assert status == 0
    assert "mlp_out" in out
    assert "'rank': [3, 2]" in out

    status, out, _ = run(*use_arguments("effect", files, "--out", files["folder"] / "effect"))
    assert status == 0
    assert "effect " in out
    written = json.loads((files["folder"] / "effect" / "results.json").read_text())
    edit = sl.SpectralEdit.load(files["edit"])
    expected = sl.effect(sl.load_model(str(files["model"])), edit, contrasts())
    assert written["effect"] == pytest.approx(expected.effect, abs=1e-6)
    assert (files["folder"] / "effect" / "effect.png").stat().st_size > 5000

    assert written["before"] == pytest.approx(expected.before, abs=1e-6)
    assert written["model"]["backend"] in ("hooked", "bridge")
    assert "effect.png" in (files["folder"] / "effect" / "report.md").read_text()

    demos = ("--demonstrations", files["demonstrations"], "--control-draws", 2)
    status, out, _ = run(
        *use_arguments("attribute", files, "--out", files["folder"] / "why", "--layers", "0,2", *demos)
    )
    assert status == 0
    figures = {path.stem for path in (files["folder"] / "why").glob("*.png")}
    assert figures == {*NAMES, "effect", "spectra"} - ON_REQUEST
    report = (files["folder"] / "why" / "report.md").read_text()
    assert all(f"({name}.png)" in report for name in figures)
    assert "fires on demonstrations" in report
    written = json.loads((files["folder"] / "why" / "results.json").read_text())
    by_layer = written["contributions"]["layers_leave_one_out"]["values"]
    assert [row["layer"] for row in by_layer] == [0, 2]
    assert all(row["control_low"] <= row["control_high"] for row in by_layer)
    assert written["contributions"]["heads_direct"]["closure_error"] < 1e-4
    alone = sl.layer_contributions(load_tiny("llama"), edit, contrasts(), "leave_one_out", layers=[0, 2])
    assert [row["value"] for row in by_layer] == pytest.approx(alone.values.tolist(), abs=1e-5)
    some = ("--methods", "layers_only_one, heads_gradient, heads_pattern")
    assert run(*use_arguments("attribute", files, "--out", files["folder"] / "some", *some))[0] == 0
    figures = {path.stem for path in (files["folder"] / "some").glob("*.png")}
    assert figures == {"layers_only_one", "heads_gradient", "heads_pattern", "effect", "spectra"}

    prompts = ("--prompt", "w1 w2", "--prompt", "w3", "--max-new-tokens", 3)
    generating = ("generate", "--model", files["model"], "--edit", files["edit"], *prompts)
    status, out, _ = run(*generating)
    assert status == 0
    assert len(out.strip().splitlines()) == 2
    status, out, _ = run(*generating, "--compare")
    assert "unedited" in out


def test_commands_take_positions_what_an_edit_remembers_and_how_tokens_are_drawn(run, files, load_tiny):
    assert run(*fit_arguments(files, "--rank", "3,2"))[0] == 0
    edit, model = sl.SpectralEdit.load(files["edit"]), load_tiny("llama")
    found = sl.effect(model, edit, contrasts(), strength=1.5, positions="answer")
    asked = ("--contrasts", files["contrasts"], "--model", files["model"], "--edit", files["edit"])
    _, out, _ = run("effect", *asked, "--strength", 1.5, "--positions", "answer")
    assert str(found) in out
    edit.with_defaults(strength=1.5, positions="answer").save(files["edit"])
    assert str(found) in run("effect", *asked)[1]
    status, _, complaint = run("effect", *asked, "--positions", "first")
    assert status == 2
    assert "--positions first" in complaint

    generating = ("generate", "--model", files["model"], "--prompt", "w1 w2", "--max-new-tokens", 9)
    drawn = ("--temperature", 0.8, "--top-p", 0.9, "--seed", 4)
    options = {"max_new_tokens": 9, "temperature": 0.8, "top_p": 0.9, "seed": 4}
    (text,) = sl.generate(model, "w1 w2", **options)
    assert run(*generating, *drawn)[1].strip() == f"w1 w2{text}".strip()
    stop = text.split()[2]
    assert run(*generating, *drawn, "--stop", stop)[1].strip() == f"w1 w2{text[: text.find(stop)]}".strip()
    assert run(*generating, "--top-k", 3)[0] == 2
    assert run(*generating, "--strength", 2)[0] == 2


@pytest.mark.parametrize(
    "options",
    [
        ("--site", "z"),
        ("--feature", "tanh", "--centre"),
        ("--neutral", "generated"),
        ("--device-map", "disk"),
        ("--device-map", "auto", "--max-memory", "cpu=80kB"),
    ],
)
def test_fit_takes_every_kind_of_option(options, files, run):
    status, _, err = run(*fit_arguments(files, "--energy", "0.9,0.99", "--layers", "last-2", *options))
    assert status == 0, err
    assert sl.SpectralEdit.load(files["edit"]).layers == (1, 2)


def bad_file(folder, name, content):
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


WRONG_FITS = {
    "energy": (("--energy", "1.5"), "energy 1.5 is outside (0, 1]"),
    "energies": (("--energy", "a"), "--energy 'a': expected one number"),
    "rank": (("--rank", "-1"), "rank -1"),
    "rank above d": (("--rank", "99"), "rank 99 is above the width of the activations, 32"),
    "site": (("--site", "mlp"), "unknown site 'mlp'"),
    "layers": (("--layers", "9"), "unknown layers [9]"),
    "layer choice": (("--layers", "middle"), "unknown layer choice 'middle'"),
    "backend": (("--backend", "nnsight"), "unknown backend 'nnsight'"),
    "feature": (("--feature", "relu"), "unknown feature 'relu'"),
    "position": (("--position", "first"), "unknown position 'first'"),
    "format": (("--format", "csv"), "--format 'csv'"),
    "dtype": (("--dtype", "int8"), "unknown dtype 'int8'"),
    "model": (("--model", "./nowhere"), "./nowhere: no such model folder"),
    "option": (("--ranks", "3"), "No such option"),
    "out": (("--out", "nowhere/e.safetensors"), "no such folder nowhere"),
    "superscript layers": (("--layers", "²"), "unknown layer choice '²'"),
    "empty model": (("--model", ""), "--model: the name is empty"),
    "device map": (("--device-map", "everywhere"), "unknown device_map 'everywhere'"),
    "max memory": (("--device-map", "auto", "--max-memory", "20GiB"), "--max-memory '20GiB': expected devices"),
    "no digit": (("--device-map", "auto", "--max-memory", "²=1GiB"), "max_memory names '²', which is no device here"),
    "device twice": (("--device-map", "auto", "--max-memory", "cpu=1GiB,cpu=2GiB"), "each once"),
    "no such device": (("--device-map", "auto", "--max-memory", "99=1GiB"), "max_memory names 99, which is no device"),
    "size": (("--device-map", "auto", "--max-memory", "cpu=many"), "memory 'many': expected a size"),
    "max memory of one": (("--device-map", "disk", "--max-memory", "cpu=1GiB"), "max_memory says how a device_map"),
    "max memory alone": (("--max-memory", "cpu=1GiB"), "max_memory says how a device_map"),
}


@pytest.mark.parametrize("case", WRONG_FITS)
def test_a_wrong_fit_is_one_line_and_status_two(case, files, run):
    options, message = WRONG_FITS[case]
    status, _, err = run(*fit_arguments(files, *options))
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not files["edit"].exists()


WRONG_ROWS = {
    "not JSON": ('{"neutral": ', "row 2: not JSON"),
    "missing field": ('{"neutral": "w1", "positive": "w1 w2"}', "row 2: no field 'negative'"),
    "empty": ('{"neutral": "w1", "positive": "", "negative": "w1 w3"}', "row 2: field 'positive' must be"),
    "equal": (
        '{"neutral": "w1", "positive": "w1 w2", "negative": "w1 w2"}',
        "row 2: positive and negative are the same",
    ),
    "no object": ("[1]", "row 2: expected a JSON object"),
    "surrogate": ('{"neutral": "w1", "positive": "w1 \\ud800", "negative": "w1 w2"}', "row 2: positive holds half a"),
    "huge number": ('{"neutral": ' + "1" * 5000 + "}", "row 2: JSON that Python cannot hold"),
    "deep": ("[" * 100_000, "row 2: JSON that Python cannot hold"),
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_a_wrong_row_is_named(case, files, run):
    row, message = WRONG_ROWS[case]
    path = bad_file(files["folder"], "bad.jsonl", '{"neutral": "w1", "positive": "w1 w2", "negative": "w1 w3"}\n' + row)
    status, _, err = run(*fit_arguments(files, "--demonstrations", path))
    assert status == 2
    assert f"{path.name}, {message}" in err
    assert f"--demonstrations {path}" in err


def test_texts_longer_than_the_context_and_empty_files_are_refused(files, run):
    long = json.dumps({"neutral": "w1", "positive": "w1 w2", "negative": "w1 " + sentence(0, N_CTX)})
    status, _, err = run(*fit_arguments(files, "--demonstrations", bad_file(files["folder"], "long.jsonl", long)))
    assert (status, "long.jsonl, row 1, negative text, has" in err) == (2, True)
    status, _, err = run(*fit_arguments(files, "--demonstrations", bad_file(files["folder"], "empty.jsonl", "\n")))
    assert (status, "has no rows" in err) == (2, True)
    status, _, err = run(*fit_arguments(files, "--demonstrations", files["folder"] / "none.jsonl"))
    assert (status, "No such file" in err) == (2, True)


def test_a_wrong_edit_is_refused(fitted_files, run, model_folders):
    files = fitted_files
    whole = files["edit"].read_bytes()
    for name, content, message in (
        ("truncated.safetensors", whole[: len(whole) // 2], "not a complete safetensors file"),
        ("pickle.pt", b"\x80\x04N.", "pickles are never read"),
    ):
        (files["folder"] / name).write_bytes(content)
        status, _, err = run(*use_arguments("effect", files, "--edit", files["folder"] / name))
        assert (status, message in err) == (2, True)
    save_file({"a": torch.zeros(1)}, files["folder"] / "foreign.safetensors")
    status, _, err = run("inspect", files["folder"] / "foreign.safetensors")
    assert (status, "sea_lens did not write" in err) == (2, True)
    x = torch.randn(8, 3, 16)
    sl.fit_activations(x, x, x, rank=1).save(files["folder"] / "narrow.safetensors")
    status, _, err = run(*use_arguments("effect", files, "--edit", files["folder"] / "narrow.safetensors"))
    assert (status, "(units, width) (1, 16)" in err) == (2, True)
    for options, message in (
        (("--layers", "last-9"), "--layers last-9: "),
        (("--combine", "sum"), "--combine 'sum'"),
        (("--strength", "nan"), "--strength nan"),
        (("--methods", "x"), "--methods 'x'"),
    ):
        status, _, err = run(*use_arguments("attribute", files, "--out", files["folder"] / "x", *options))
        assert (status, message in err) == (2, True)


def test_an_interruption_leaves_no_file(files, run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sea_lens.cli.fitting.capture", interrupted)
    status, _, err = run(*fit_arguments(files))
    assert (status, err) == (130, "sea-lens: interrupted\n")
    assert not files["edit"].exists()


@pytest.mark.parametrize(
    "command", ["demo", "fit", "effect", "attribute", "evaluate", "compare", "generate", "inspect"]
)
def test_every_command_has_help_with_an_example(command, run):
    status, out, _ = run(command, "--help")
    assert status == 0
    assert f"Example: sea-lens {command}" in out


def test_the_installed_command_answers():
    done = subprocess.run([sys.executable, "-m", "sea_lens", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"sea-lens {sl.__version__}\n"


def test_contrasts_that_one_method_cannot_measure_are_refused_before_the_others_begin(fitted_files, run, monkeypatch):
    files = fitted_files
    path = bad_file(files["folder"], "same.jsonl", json.dumps({"prompt": "w1", "target": " w2 w3", "foil": " w2 w4"}))
    arguments = use_arguments("attribute", files | {"contrasts": path}, "--out", files["folder"] / "why")
    status, out, _ = run(*arguments, "--methods", "layers_only_one")
    assert status == 0

    def unwanted(*_, **__):
        raise AssertionError

    monkeypatch.setattr("sea_lens.cli.attribution.layer_games", unwanted)
    status, _, err = run(*arguments, "--methods", "layers_only_one,heads_direct")
    assert (status, "same.jsonl, row 1: target and foil begin with the same token" in err) == (2, True)
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["sea-lens", *map(str, arguments)])
    status, out, _ = run(*arguments)
    assert (status, "left out: heads_direct" in out) == (0, True)


@pytest.fixture
def choices(tmp_path):
    path = tmp_path / "choices.jsonl"
    rows = [
        {"query": sentence(i, 4), "choices": [sentence(50 + i, 1), sentence(90 + i, 2)], "gold": i % 2}
        for i in range(9)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_benchmark_is_run_killed_resumed_and_compared(fitted_files, choices, run, monkeypatch):
    from sea_lens.evaluation import run as running
    from sea_lens.evaluation.capability import Capability

    monkeypatch.setattr(running, "PART", 4)
    folder = fitted_files["folder"]
    common = ("evaluate", "--model", fitted_files["model"], "--benchmark", "capability", "--data", choices)
    edited = (*common, "--edit", fitted_files["edit"], "--strength", "0.5")
    status, output, _ = run(*common, "--out", folder / "before.json")
    assert status == 0
    assert "accuracy_normalised" in output
    assert run(*edited, "--out", folder / "whole.json")[0] == 0

    ask, asked = Capability.ask, []

    def dying(self, asker, items):
        asked.append(items)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(self, asker, items)

    monkeypatch.setattr(Capability, "ask", dying)
    assert run(*edited, "--out", folder / "after.json")[::2] == (130, "sea-lens: interrupted\n")
    assert not (folder / "after.json").exists()
    status, output, _ = run(*edited, "--out", folder / "after.json")
    assert status == 0
    assert "going on from" in output
    assert len(asked) == 2 + 2
    assert (folder / "after.json").read_bytes() == (folder / "whole.json").read_bytes()
    assert not (folder / "after.json.partial").exists()

    before, after = (sl.Evaluation.load(folder / f"{name}.json") for name in ("before", "after"))
    status, output, _ = run(
        "compare", folder / "before.json", folder / "after.json", "--control", folder / "before.json", "--out", folder
    )
    assert status == 2
    status, output, _ = run("compare", folder / "before.json", folder / "after.json", "--out", folder / "changes")
    assert status == 0
    found = json.loads((folder / "changes" / "results.json").read_text())["scores"]["accuracy"]
    assert found["difference"] == after.scores["accuracy"] - before.scores["accuracy"]
    assert (folder / "changes" / "differences.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"--benchmark": "nosuch"}, "unknown benchmark 'nosuch'"),
        ({"--data": "nosuch.jsonl"}, "--data nosuch.jsonl"),
        ({"--chat": "maybe"}, "--chat 'maybe': expected one of auto, yes, no"),
        ({"--prompt": "nosuch"}, "unknown prompt 'nosuch'"),
        ({"--out": "nosuch/r.json"}, "--out nosuch/r.json: no such folder"),
        ({"--edit": "nosuch.safetensors"}, "--edit nosuch.safetensors: no such file"),
        ({"--benchmark": "truthfulqa"}, "row 1: no field 'question'"),
        ({"--benchmark": "perplexity", "--prompt": "qa"}, "takes no prompt"),
    ],
)
def test_a_wrong_evaluation_is_one_line_and_status_two(arguments, message, files, choices, run, monkeypatch):
    monkeypatch.setattr("sea_lens.cli.options.load_model", None)  # Refused before the model is loaded.
    given = {"--model": files["model"], "--benchmark": "capability", "--data": choices, "--out": files["folder"] / "r"}
    flat = [part for pair in (given | arguments).items() for part in pair]
    status, _, error = run("evaluate", *flat)
    assert status == 2
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("method", ["mean_difference", "lora"])
def test_every_command_takes_an_edit_of_any_method(method, files, run, load_tiny):
    model = load_tiny("llama", "bridge")
    if method == "lora":
        edit = sl.lora(model, demonstrations(), epochs=1, learning_rate=0.01, progress=False)
    else:
        edit = sl.mean_difference(sl.capture(model, demonstrations(), progress=False))
    edit.save(files["edit"])
    status, out, _ = run("inspect", files["edit"])
    assert status == 0
    assert f"method: {type(edit).__name__}" in out
    status, out, _ = run(*use_arguments("effect", files, "--strength", "0.5", "--backend", "bridge"))
    assert status == 0
    wanted = sl.effect(model, edit, contrasts(), strength=0.5)
    assert f"{wanted.effect:+.3f}" in out
    assert run("generate", "--model", files["model"], "--edit", files["edit"], "--prompt", "w1 w2")[0] == 0
    status, out, _ = run(*use_arguments("attribute", files, "--out", files["folder"] / "why", "--limit", "3"))
    assert status == 0
    results = json.loads((files["folder"] / "why" / "results.json").read_text())
    assert results["edit"]["method"] == type(edit).__name__
    games = {"layers_shapley", "layers_leave_one_out", "layers_only_one"}
    everything = set(NAMES) - {"directions_path", "heads_direct"} - ON_REQUEST
    # The first tokens of these contrasts differ, so that direct contributions are there.
    assert set(results["contributions"]) - {"heads_direct"} == (games if method == "lora" else everything)
    assert ("heads_direct" in results["contributions"]) == (method != "lora")
    assert not (files["folder"] / "why" / "spectra.png").exists()
    assert "spectra" not in (files["folder"] / "why" / "report.md").read_text()
    status, _, err = run(
        *use_arguments(
            "attribute", files, "--out", files["folder"] / "why2", "--demonstrations", files["demonstrations"]
        )
    )
    assert status == 2
    assert "only a spectral edit can be fitted anew" in err
    status, _, err = run(*use_arguments("effect", files, "--combine", "norm"))
    assert status == 2
    assert "--combine 'norm': expected one of" in err


def test_attribute_tokenises_each_text_once_and_its_analyses_are_those_of_the_library(fitted_files, run, monkeypatch):
    files, texts = fitted_files, Counter[str]()
    encode = PreTrainedTokenizerFast._encode_plus

    def counted(self, text, *arguments, **options):
        texts.update([text] if isinstance(text, str) else map(str, text))
        return encode(self, text, *arguments, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", counted)
    folder = files["folder"] / "once"
    more = ("--demonstrations", files["demonstrations"], "--control-draws", 2, "--out", folder)
    status, _, err = run(*use_arguments("attribute", files, *more))
    assert status == 0, err
    monkeypatch.undo()
    given = {
        text for item in contrasts() for text in (item.prompt, item.prompt + item.target, item.prompt + item.foil)
    } | {text for one in demonstrations() for text in (one.neutral, one.positive, one.negative)}
    # Texts that several items have in common are tokenised with each of them.
    assert set(texts) >= given
    assert texts.total() <= 3 * (len(contrasts()) + len(demonstrations())) + len(set(texts) - given)

    # What is measured together is what is measured alone.
    written = json.loads((folder / "results.json").read_text())["contributions"]
    model, edit = sl.load_model(str(files["model"])), sl.SpectralEdit.load(files["edit"])
    control = sl.permuted(model, edit, demonstrations(), draws=2)
    alone = {
        "layers_path": sl.layer_contributions(model, edit, contrasts(), "path", control=control),
        "layers_shapley": sl.layer_contributions(model, edit, contrasts(), "shapley", control=control),
        "positions_path": sl.position_contributions(model, edit, contrasts(), control=control),
        "directions_path": sl.direction_contributions(
            model, edit, contrasts(), demonstrations=demonstrations(), control=control
        ),
        "heads_direct": sl.head_contributions(model, edit, contrasts(), "direct", control=control),
        "heads_sufficiency": sl.head_contributions(model, edit, contrasts(), "sufficiency", control=control),
        "heads_necessity": sl.head_contributions(model, edit, contrasts(), "necessity", control=control),
        "heads_gradient": sl.head_contributions(model, edit, contrasts(), "gradient", control=control),
    }
    for name, result in alone.items():
        assert np.allclose(written[name]["item_values"], result.item_values, atol=1e-6), name
        assert (written[name]["control_values"] is None) == (result.control_values is None), name
        if result.control_values is not None:
            assert np.allclose(written[name]["control_values"], result.control_values, atol=1e-6), name
    described = alone["directions_path"].descriptions
    assert set(written["directions_path"]["descriptions"]) == {".".join(map(str, label)) for label in described}
