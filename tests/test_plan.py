"""What is planned is what is measured: passes, tokens, bytes; and what a user reads of it."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from tiny import BACKENDS, FAMILIES, contrasts, demonstrations, save_random_weights
from transformers import AutoModelForCausalLM
from transformers.models.llama.configuration_llama import LlamaConfig

import sea_lens as sl
from sea_lens.cli import main
from sea_lens.models.lens import Lens
from sea_lens.planning.live_bytes import counted
from sea_lens.planning.planned_steps import STEPS
from sea_lens.planning.quantities import read_bytes, shown
from sea_lens.planning.statistics_memory import Layout, fitting
from sea_lens.spectral.statistics import Activations
from sea_lens.testbed.tokenizer import word_tokenizer

pytestmark = pytest.mark.model

LLAMA_7B = LlamaConfig(
    vocab_size=32_000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
)
OPTIONS: dict[str, Any] = {"backend": "bridge", "device": "cpu", "memory": "24GB"}


@pytest.fixture(scope="module")
def tiny_plan(model_folders):
    return sl.plan(model_folders["llama"], demonstrations(), contrasts(), rank=3, **OPTIONS)


class Passes:
    """Counts the passes of a model and the tokens that they read."""

    def __init__(self, model):
        self.passes = self.tokens = 0
        self.handle = model.original_model.get_input_embeddings().register_forward_pre_hook(self.count)

    def count(self, module, arguments):
        self.passes += 1
        self.tokens += arguments[0].numel()


@pytest.fixture
def counting(load_tiny):
    """A tiny model that has been used already, and what counts its passes."""
    model = load_tiny("llama", "bridge")
    sl.capture(model, demonstrations(2), progress=False)
    sl.effect(model, sl.fit(sl.capture(model, demonstrations(), progress=False), rank=2), contrasts(2))
    found = Passes(model)
    yield model, found
    found.handle.remove()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "pythia"])
def test_parameters_are_those_of_the_model_itself(family):
    config = FAMILIES[family]()
    expected = sum(one.numel() for one in AutoModelForCausalLM.from_config(config).parameters())
    plan = sl.plan(config, steps=["load"], **OPTIONS)
    assert plan.model["parameters"] == expected
    assert plan["load"].parts[0].bytes >= 4 * expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_a_deep_model_are_those_of_its_tensors(backend, model_folders, load_tiny):
    model = load_tiny("llama", backend)
    plan = sl.plan(model_folders["llama"], steps=["load"], **{**OPTIONS, "backend": backend})
    held = sum(one.numel() * one.element_size() for one in [*model.parameters(), *model.buffers()])
    assert plan["load"].parts[0].bytes == pytest.approx(held, rel=0.02)


def test_a_known_model_has_its_known_size_and_no_weight_is_read():
    plan = sl.plan(LLAMA_7B, steps=["load"], dtype="bfloat16", **OPTIONS)
    assert plan.model["parameters"] == 6_738_415_616
    assert plan["load"].parts[0].bytes == pytest.approx(2 * 6_738_415_616, rel=0.01)


def test_capture_makes_the_passes_that_are_planned(tiny_plan, counting):
    model, found = counting
    sl.capture(model, demonstrations(), progress=False)
    assert (tiny_plan["capture"].forward, tiny_plan["capture"].tokens) == (found.passes, found.tokens)


def test_effect_makes_the_passes_that_are_planned(tiny_plan, counting):
    model, found = counting
    edit = sl.fit(sl.capture(model, demonstrations(), progress=False), rank=3)
    found.passes = found.tokens = 0
    sl.effect(model, edit, contrasts())
    assert (tiny_plan["effect"].forward, tiny_plan["effect"].tokens) == (found.passes, found.tokens)


def test_a_saved_edit_and_a_store_are_as_large_as_planned(tiny_plan, load_tiny, tmp_path):
    model = load_tiny("llama", "bridge")
    covariance = sl.capture(model, demonstrations(), store=tmp_path / "store", progress=False)
    assert isinstance(covariance.statistics, Activations)
    tensors = [one for part in covariance.statistics.parts for index in range(3) for one in part.layer(index)]
    assert tiny_plan["capture, store"].disk == sum(one.numel() * one.element_size() for one in tensors)
    edit = sl.fit(covariance, rank=3)
    factors = [one for name, one in edit.tensors().items() if name.endswith(("keep", "drop", "_values"))]
    assert tiny_plan["fit"].disk == pytest.approx(sum(one.numel() * one.element_size() for one in factors), rel=0.1)


# In a process of its own: one that has run other tests holds freed memory here and there.
BACKWARD = """
import gc
import sys
from pathlib import Path
import torch
import sea_lens as sl


def held(what):
    return int(Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0]) * 2**10


torch.set_num_threads(1)
model = sl.load_model(sys.argv[1], "bridge", "cpu", "float32")
asked = sl.Contrasts.from_jsonl(sys.argv[2])
neutral, positive, negative = torch.randn(3, 20, 4, 512, generator=torch.Generator().manual_seed(0))
edit = sl.fit_activations(neutral, positive, negative, rank=2)
for again in range(2):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = held("VmRSS")
    sl.head_contributions(model, edit, asked, "gradient", sample=0)
print(held("VmHWM") - before)
"""
# The C library gives back at once what is freed, as `timings/plan.py` has it.
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is set back on Linux alone")
def test_a_backward_pass_holds_about_what_is_planned(tmp_path):
    # The whole comparison is `timings/plan.py`.
    sizes: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4}
    save_random_weights(LlamaConfig(vocab_size=2000, num_attention_heads=8, **sizes), tmp_path, 0.0)
    word_tokenizer([f"w{number}" for number in range(508)], 512).save_pretrained(tmp_path)
    asked = sl.Contrasts(sl.Contrast("w1 " * 80 + f"w{i}", f" w{i + 10}", f" w{i + 20}") for i in range(8))
    asked.to_jsonl(tmp_path / "contrasts.jsonl")
    planned = sl.plan(tmp_path, None, asked, rank=2, steps=["gradient"], **OPTIONS)["gradient"].parts[1].bytes
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BACKWARD, str(tmp_path), str(tmp_path / "contrasts.jsonl")],
        env={**os.environ, **AT_ONCE}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert planned > 50e6
    assert 0.6 * planned < int(ran.stdout.splitlines()[-1]) < 1.6 * planned


def test_bytes_are_counted_as_long_as_they_live():
    def held():
        first = torch.empty(1000, device="meta")
        second = first + 1
        view = second[:10]
        del second
        return first[:5].clone() + view.sum()

    with counted() as live:
        kept = held()
    # Sums may take a little of their own.
    assert 2 * 4000 + 20 <= live.most <= 2 * 4000 + 100
    assert live.now == kept.numel() * 4


def test_a_deeper_model_takes_what_its_layers_add():
    def planned(layers: int) -> sl.Plan:
        config = LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4
        )
        return sl.plan(config, demonstrations(2), contrasts(2), steps=["path"], **OPTIONS)

    passes = [planned(layers)["path"].parts[1].bytes for layers in (3, 5, 7)]
    assert passes[2] - passes[1] == pytest.approx(passes[1] - passes[0], abs=100)
    assert passes[0] < passes[1]


def test_what_does_not_fit_says_what_would():
    plan = sl.plan(LLAMA_7B, steps=["load"], **{**OPTIONS, "device": "cuda", "memory": "8GB", "dtype": "bfloat16"})
    assert not plan.fits
    assert "device_map='auto' over" in plan["load"].advice
    assert "8 bits" in plan["load"].advice or "4 bits" in plan["load"].advice
    plan = sl.plan(LLAMA_7B, steps=["load"], dtype="float32", **{**OPTIONS, "memory": "16GB"})
    assert "dtype='bfloat16'" in plan["load"].advice


def test_fewer_directions_take_less_than_all_of_them():
    layout = Layout(n=1000, layers=32, units=1, d=4096, itemsize=2)
    assert fitting(layout, 8) <= fitting(layout, 32) < fitting(layout, None)


def test_sizes_are_read_in_units_of_thousands_and_of_1024():
    assert [read_bytes(text) for text in ("24GB", "1 GiB", "500mb", "7")] == [24 * 10**9, 2**30, 5 * 10**8, 7]
    assert shown(13_476_000_000) == "13.5 GB"
    for wrong in ("24 parsecs", "", "-1GB", "0", "GB"):
        with pytest.raises(sl.InputError, match="expected a size such as 24GB"):
            read_bytes(wrong)


def test_wrong_input_is_one_clear_error(tmp_path):
    wrong: dict[str, Any] = {
        "memory": "24 parsecs",
        "device": "tpu",
        "dtype": "int8",
        "site": "nowhere",
        "layers": [99],
    }
    for name, value in wrong.items():
        with pytest.raises(sl.InputError, match=f"{name}|layer"):
            sl.plan(LLAMA_7B, **{**OPTIONS, name: value})
    with pytest.raises(sl.InputError, match="unknown step 'dance'"):
        sl.plan(LLAMA_7B, steps=["dance"], **OPTIONS)
    with pytest.raises(sl.InputError, match="no step is asked for"):
        sl.plan(LLAMA_7B, steps=[], **OPTIONS)
    with pytest.raises(sl.FileError, match=r"without config\.json"):
        sl.plan(tmp_path, **OPTIONS)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(sl.UnsupportedModelError):
        sl.plan(tmp_path, **OPTIONS)


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("llama", {"num_hidden_layers": 0}, "has 0 layers"),
        ("llama", {"num_key_value_heads": 3}, "could not be run"),
        ("llama", {"quantization_config": {"load_in_4bit": True}}, "weights in few bits"),
        ("bert", {}, "no causal language model"),
        ("t5", {}, "no causal language model"),
    ],
)
def test_a_model_that_cannot_be_planned_is_refused(kind, changed, message):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind, **sizes, **{"num_hidden_layers": 3, **changed})
    with pytest.raises(sl.UnsupportedModelError, match=message):
        sl.plan(config, steps=["capture"], **OPTIONS)


def test_a_text_beyond_the_context_is_refused_with_its_name(model_folders):
    long = sl.Demonstrations([sl.Demonstration("w1 " * 60, "w1 " * 60 + "w2", "w1 " * 60 + "w3")])
    with pytest.raises(sl.DemonstrationError, match="demonstration 0"):
        sl.plan(model_folders["llama"], long, steps=["capture"], **OPTIONS)


def test_without_a_tokenizer_characters_are_counted_and_that_is_said(tmp_path):
    FAMILIES["llama"]().save_pretrained(tmp_path)
    plan = sl.plan(tmp_path, demonstrations(), steps=["capture"], **OPTIONS)
    assert "four characters count as a token" in plan.texts["tokens"]
    assert plan["capture"].tokens > 0


def test_the_table_has_every_step_and_json_every_part(tiny_plan):
    expected = [name for name in STEPS if name != "evaluate"]
    assert list(tiny_plan.to_frame().index) == expected
    assert all(name in str(tiny_plan) for name in expected)
    record = json.loads(json.dumps(tiny_plan.record))
    for step in record["steps"]:
        assert step["memory"] == sum(part["bytes"] for part in step["parts"])


def test_planning_leaves_nothing_behind(tiny_plan, load_tiny):
    # The size of parts of the vocabulary belongs to real devices alone.
    from sea_lens.models.vocabulary_parts import LOGITS_AT_ONCE, stands_for

    assert set(LOGITS_AT_ONCE) == {"cpu", "cuda"}
    assert stands_for.get() == "cuda"
    assert Lens.of(load_tiny("llama", "bridge")).device.type == "cpu"


def test_the_command_prints_the_plan_and_json(model_folders, tmp_path, monkeypatch, capsys):
    demonstrations().to_jsonl(tmp_path / "demos.jsonl")

    def run(*more: object) -> tuple[Any, str, str]:
        given = ["--model", model_folders["llama"], "--backend", "bridge", "--device", "cpu", "--steps", "load;capture"]
        monkeypatch.setattr(sys, "argv", ["sea-lens", "plan", *map(str, given), *map(str, more)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, *capsys.readouterr()

    status, out, _ = run("--demonstrations", tmp_path / "demos.jsonl", "--memory", "1GB", "--json")
    record = json.loads(out)
    assert status == 0
    assert record["limit"] == 10**9
    assert record["texts"]["demonstrations"] == len(demonstrations())
    assert [step["step"] for step in record["steps"]] == ["load", "capture"]
    status, out, _ = run("--memory", "10kB")
    assert status == 0
    assert "not all steps fit" in out
    assert "lengths are assumed" in out
    for wrong, message in (
        (("--memory", "24 parsecs"), "expected a size such as 24GB"),
        (("--demonstrations", tmp_path / "none.jsonl"), "--demonstrations"),
        (("--benchmark", "truthfulqa"), "expected both or none"),
        (("--model", tmp_path), "without config.json"),
    ):
        status, _, told = run(*wrong)
        assert (status, len(told.strip().splitlines())) == (2, 1)
        assert message in told
