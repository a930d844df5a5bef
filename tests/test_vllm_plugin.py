"""Edits served by vLLM through its plug-in (docs/method.md 12.3).

What needs vLLM runs in an environment that has it (`make test-vllm`), each server in a process of its own.
"""

import importlib.metadata
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.opt.configuration_opt import OPTConfig
from wide_heads import with_wide_heads

import sea_lens as sl
from sea_lens.models.vllm_modules import put_into
from sea_lens.serving.environment import served_edits

PROMPTS = ["Once upon a time", "The little dog", "Tom had a red ball. He", "It was a sunny day and"]
NEW = 24
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


# What needs no vLLM.


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Two edits in files."""
    neutral, positive, negative = (torch.randn(20, 3, 32, generator=torch.Generator().manual_seed(i)) for i in range(3))
    for name, rank in (("a", 2), ("b", 5)):
        edit = sl.fit_activations(neutral, positive, negative, rank=rank)
        edit.with_defaults(layers="last-2", strength=0.5).save(tmp_path / f"{name}.safetensors")
    return str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")


def test_an_edit_is_served_as_it_remembers_unless_the_environment_says_otherwise(files):
    first, second = files
    (alone,) = served_edits({"SEA_LENS_EDIT": first})
    assert (alone.where.strengths, alone.where.combine) == ({1: 0.5, 2: 0.5}, "norm")
    both = served_edits(
        {
            "SEA_LENS_EDIT": os.pathsep.join([second, first]),
            "SEA_LENS_STRENGTH": "2;",
            "SEA_LENS_LAYERS": "0,2",
            "SEA_LENS_COMBINE": "average",
        }
    )
    assert [one.edit.ranks[0][0] for one in both if isinstance(one.edit, sl.SpectralEdit)] == [5, 2]
    assert [one.where.strengths for one in both] == [{0: 2.0, 2: 2.0}, {0: 0.5, 2: 0.5}]
    assert [one.where.combine for one in both] == ["average", "average"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SEA_LENS_EDIT", "", "expected the file of an edit"),
        ("SEA_LENS_EDIT", "nowhere.safetensors", "nowhere.safetensors"),
        ("SEA_LENS_STRENGTH", "much", "expected a number"),
        ("SEA_LENS_STRENGTH", "1;2;3", "one for each of 1 edits"),
        ("SEA_LENS_STRENGTH", "nan", "finite"),
        ("SEA_LENS_LAYERS", "last-9", "asks for 9 layers"),
        ("SEA_LENS_COMBINE", "sum", "unknown combine"),
    ],
)
def test_what_the_environment_says_wrong_is_one_clear_error(files, name, value, said):
    with pytest.raises(sl.SeaLensError, match=said):
        served_edits({"SEA_LENS_EDIT": files[0], name: value})


def test_an_edit_at_some_positions_is_not_served(files, tmp_path):
    edit = sl.load_edit(files[0]).with_defaults(positions="prompt")
    assert isinstance(edit, sl.SpectralEdit)
    edit.save(tmp_path / "prompt.safetensors")
    with pytest.raises(sl.InputError, match="at every token"):
        served_edits({"SEA_LENS_EDIT": str(tmp_path / "prompt.safetensors")})


class Block(torch.nn.Module):
    """A block as vLLM's: what it adds, and what it adds it to."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = torch.nn.Linear(4, 4)

    def forward(self, x: Tensor, stream: Tensor | None) -> tuple[Tensor, Tensor]:
        stream = x if stream is None else stream + x
        return self.mlp(stream), stream


class Model(torch.nn.Module):
    """Two blocks, and the sum that vLLM's last norm makes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        stream = None
        for layer in self.layers:
            x, stream = layer(x, stream)
        assert stream is not None
        return x + stream


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("path", ["layers.0.mlp", "layers.0"])
def test_a_function_is_part_of_the_module_compiled_too(path, compiled):
    # The function of the layer is linear, so that what it does can be said in weights.
    def twice(x: Tensor) -> Tensor:
        return 2 * x

    expected, model, x = Model(), Model(), torch.randn(5, 4)
    names = [name for name, _ in model.named_parameters()]
    first = expected.layers[0]
    assert isinstance(first, Block)
    with torch.no_grad():
        if path.endswith("mlp"):
            first.mlp.weight *= 2
            first.mlp.bias.mul_(2)
            wanted = expected(x)
        else:
            wanted = expected.layers[1](2 * sum(first(x, None)), None)
            wanted = wanted[0] + wanted[1]
    put_into(model, {path: twice}, f"test {path}")
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    with torch.no_grad():
        torch.testing.assert_close(run(x), wanted)
    assert [name for name, _ in model.named_parameters()] == names
    with pytest.raises(sl.UnsupportedModelError, match=r"no module 'layers\.7'"):
        put_into(model, {"layers.7": twice}, "test")


def test_vllm_finds_the_plug_in_and_nothing_is_imported_without_an_edit():
    (found,) = [one for one in importlib.metadata.entry_points(group="vllm.general_plugins") if one.name == "sea_lens"]
    assert found.value == "sea_lens_vllm:register"
    check = "import sys, sea_lens_vllm; sea_lens_vllm.register(); print('sea_lens' in sys.modules)"
    alone = {name: value for name, value in os.environ.items() if name != "SEA_LENS_EDIT"}
    printed = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, env=alone)
    assert printed.stdout.strip() == "False"


# What needs vLLM.


class Ready:
    """The shared model in TransformerLens and as vLLM can run it, and edits for it."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.model, self.folder = sl.load_model(source), with_wide_heads(source, folder / "stories")
        texts = ["Once upon a time there was", "The dog ran", "Tom had a ball", "It was sunny", "She saw", "He played"]
        demos = [sl.Demonstration(text, f"{text} and was happy", f"{text} and was sad") for text in texts]
        covariance = sl.capture(self.model, demos, progress=False)
        self.edit = sl.fit(covariance, rank=4).with_defaults(strength=1.5)
        self.other = sl.mean_difference(sl.capture(self.model, demos, site="resid_post", progress=False))
        self.other = self.other.with_defaults(layers="last-2", strength=2.0, positions="all")
        self.edit.save(folder / "edit.safetensors")
        self.other.save(folder / "other.safetensors")
        self.here = folder

    def scored(self, edit: sl.Edit, prompt: str, answer: list[int]) -> list[float]:
        """Log-probabilities of the tokens of an answer under an edit."""
        tokens = self.model.to_tokens(prompt, prepend_bos=True)
        whole = torch.cat([tokens, torch.tensor([answer])], 1)
        with torch.no_grad(), edit.applied(self.model):
            found = self.model(whole, return_type="logits")[0].float().log_softmax(-1)
        return [found[tokens.shape[1] - 1 + place, token].item() for place, token in enumerate(answer)]


@pytest.fixture(scope="session")
def ready(shared, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("needs vLLM: make test-vllm")
    if not (shared / "models" / "stories260K").is_dir():
        pytest.skip("needs the model stories260K")
    return Ready(shared / "models" / "stories260K", tmp_path_factory.mktemp("served"))


@contextmanager
def serving(folder: Path, log: Path, *options: str, **variables: str) -> Iterator[str]:
    """The address of `vllm serve`, while it runs.

    Raises:
        RuntimeError: it has stopped; with what it said.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` starts; that command itself asks for a package named vllm, and for CPUs it is vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "16", "--served-model-name", "m"]
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as written:
        process = subprocess.Popen(
            [*command, *options],
            env={**os.environ, **ENVIRONMENT, **variables},
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)


def completed(address: str, prompt: str) -> dict[str, Any]:
    """What the server answers, with log-probabilities and the ids of tokens."""
    asked = {"model": "m", "prompt": prompt, "max_tokens": NEW, "temperature": 0, "logprobs": 0}
    asked |= {"return_tokens_as_token_ids": True}
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)["choices"][0]


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_a_served_model_completes_as_sl_generate_does(ready, tmp_path, how):
    options = ["--enforce-eager"] if how == "eager" else []
    paths = os.pathsep.join(str(ready.here / f"{name}.safetensors") for name in ("edit", "other"))
    edits = sl.composed(ready.edit, ready.other)
    expected = sl.generate(ready.model, PROMPTS, edits, max_new_tokens=NEW)
    assert expected != sl.generate(ready.model, PROMPTS, ready.edit, max_new_tokens=NEW)
    assert expected != sl.generate(ready.model, PROMPTS, max_new_tokens=NEW)
    with serving(ready.folder, tmp_path / "log", *options, SEA_LENS_EDIT=paths) as address:
        found = [completed(address, prompt) for prompt in PROMPTS]
    assert [one["text"] for one in found] == expected
    for prompt, one in zip(PROMPTS, found, strict=True):
        answer = [int(token.removeprefix("token_id:")) for token in one["logprobs"]["tokens"]]
        scored = ready.scored(edits, prompt, answer)
        assert max(abs(a - b) for a, b in zip(scored, one["logprobs"]["token_logprobs"], strict=True)) < 1e-4
    assert "is served with SpectralEdit" in (tmp_path / "log").read_text()


def test_code_that_was_compiled_with_one_strength_is_not_taken_for_another(ready, tmp_path):
    cache, edit = str(tmp_path / "cache"), str(ready.here / "edit.safetensors")
    for strength in ("0.5", "3"):
        expected = sl.generate(ready.model, PROMPTS, ready.edit, strength=float(strength), max_new_tokens=NEW)
        variables = {"SEA_LENS_EDIT": edit, "SEA_LENS_STRENGTH": strength, "VLLM_CACHE_ROOT": cache}
        with serving(ready.folder, tmp_path / "log", **variables) as address:
            assert [completed(address, prompt)["text"] for prompt in PROMPTS] == expected


IN_PROCESS = """
from vllm import LLM, SamplingParams
llm = LLM({folder!r}, max_model_len=256, dtype="float32", enforce_eager=True{more})
found = llm.generate({prompts!r}, SamplingParams(temperature=0, max_tokens={new}), use_tqdm=False)
print("FOUND", [one.outputs[0].text for one in found])
"""


def in_process(folder: Path, more: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """What a script with `LLM(…)` prints."""
    script = IN_PROCESS.format(folder=str(folder), prompts=PROMPTS, new=NEW, more=more)
    script = f"if __name__ == '__main__':\n{''.join(f'    {line}' for line in script.splitlines(keepends=True))}"
    environment = {**os.environ, **ENVIRONMENT, **variables}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("more", ["", ", tensor_parallel_size=2"])
def test_an_engine_in_a_script_is_edited_on_one_device_and_on_two(ready, more):
    expected = sl.generate(ready.model, PROMPTS, ready.edit, max_new_tokens=NEW)
    found = in_process(ready.folder, more, SEA_LENS_EDIT=str(ready.here / "edit.safetensors"))
    assert f"FOUND {expected}" in found.stdout, found.stderr


def test_an_edit_for_another_model_is_refused_and_nothing_is_served(ready, tmp_path):
    torch.manual_seed(3)
    other = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ready.folder))
    other.save_pretrained(tmp_path / "stranger")
    AutoTokenizer.from_pretrained(ready.folder).save_pretrained(tmp_path / "stranger")
    edit = {"SEA_LENS_EDIT": str(ready.here / "edit.safetensors")}
    found = in_process(tmp_path / "stranger", **edit)
    assert found.returncode != 0
    assert "with the embedding" in found.stdout + found.stderr
    assert "other weights, the embedding" in found.stdout + found.stderr
    missing = in_process(ready.folder, SEA_LENS_EDIT="nowhere.safetensors")
    assert missing.returncode != 0
    assert "nowhere.safetensors" in missing.stdout + missing.stderr


def test_a_family_that_is_not_known_is_refused(ready, tmp_path):
    options: dict[str, Any] = {
        "word_embed_proj_dim": 64,
        "ffn_dim": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 5,
    }
    tiny.FAMILIES["opt of heads of 32"] = lambda: OPTConfig(vocab_size=tiny.VOCABULARY, hidden_size=64, **options)
    folder = tiny.save_tiny_model("opt of heads of 32", tmp_path / "opt")
    ready.edit.for_any_model().save(tmp_path / "edit.safetensors")
    found = in_process(folder, SEA_LENS_EDIT=str(tmp_path / "edit.safetensors"))
    assert found.returncode != 0
    assert "OPTForCausalLM has its activations is not known" in found.stdout + found.stderr
