"""What loading costs, and the ways to load: without a second copy, with fused attention, in place, in few bits."""

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import BACKENDS, FAMILIES, WORDS, save_tiny_model, tokens
from torch.utils._python_dispatch import TorchDispatchMode

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.models.load import hooked_available

pytestmark = pytest.mark.model

_FUSED = ("llama", "mistral", "gemma", "qwen2", "qwen3")
_needs_hooked = pytest.mark.skipif(not hooked_available(), reason="this TransformerLens has no HookedTransformer")


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A Llama of 68 MB in bfloat16."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = AutoConfig.for_model("llama", vocab_size=8192, max_position_embeddings=128, **sizes)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(save_tiny_model("llama", folder / "tiny")).save_pretrained(folder)
    return folder


class _Made(TorchDispatchMode):
    """Notes the largest tensor that is made in each dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.largest[out.dtype] = max(self.largest.get(out.dtype, 0), out.numel())
        return out


def test_bfloat16_weights_never_pass_through_float32(wide, backend):
    with _Made() as made:
        sl.load_model(wide, backend, device="cpu", dtype="bfloat16", check=False)
    # The least matrix of the model; tables of rotations are smaller.
    assert made.largest.get(torch.float32, 0) < 512 * 512


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of memory")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_makes_no_second_copy_of_the_weights(wide, backend, dtype):
    def resident(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    sl.load_model(wide, backend, device="cpu", dtype=dtype, check=False)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the count cannot be set back here")
    before = resident("VmRSS")
    model = sl.load_model(wide, backend, device="cpu", dtype=dtype)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert (resident("VmHWM") - before) / size < 1.5


@_needs_hooked
@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_weights_of_a_hooked_model_are_the_same_memory(family, model_folders):
    model = sl.load_model(model_folders[family], "hooked", device="cpu", check=False)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for changed in ("embed.W_E", "blocks.1.attn.W_Q", "blocks.1.mlp.W_out", "unembed.W_U"):
        model.get_parameter(changed).data.mul_(2.0)
        moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
        assert moved == {changed}
        model.get_parameter(changed).data.copy_(before[changed])


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_attention_gives_the_logits_of_attention_with_patterns(family, model_folders):
    folder = model_folders[family]
    plain = sl.load_model(folder, "bridge", device="cpu", attention="eager")
    if family not in _FUSED:
        with pytest.raises(sl.UnsupportedModelError, match=r"cannot compute attention by sdpa: .*attention='eager'"):
            sl.load_model(folder, "bridge", device="cpu", attention="sdpa")
    fused = sl.load_model(folder, "bridge", device="cpu")
    ids, mask = tokens(3, 20), torch.ones(3, 20, dtype=torch.long)
    mask[1, 13:] = 0
    with torch.no_grad():
        given, expected = (Lens.of(model).forward(ids, mask)[mask.bool()] for model in (fused, plain))
    torch.testing.assert_close(given, expected, rtol=0, atol=2e-5)
    # Fused kernels round otherwise, so that equal bits say which ran.
    assert torch.equal(given, expected) == (family not in _FUSED)
    texts = [sl.generate(model, "the cat", max_new_tokens=8) for model in (fused, plain)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("point", ["hook_pattern", "hook_attn_scores", "hook_rot_q"])
def test_a_hook_sees_and_changes_what_fused_attention_does_not_hold(point, model_folders):
    fused, plain = (
        sl.load_model(model_folders["qwen3"], "bridge", device="cpu", attention=way) for way in ("sdpa", "eager")
    )
    ids = tokens(2, 12)
    seen: list[torch.Tensor] = []

    def halve(x: torch.Tensor, hook: Any) -> torch.Tensor:
        seen.append(x.detach().clone())
        return x * 0.5

    every = [(f"blocks.{layer}.attn.{point}", halve) for layer in range(3)]
    with torch.no_grad():
        fused(ids)
        given, expected = (model.run_with_hooks(ids, fwd_hooks=every) for model in (fused, plain))
        assert len(seen) == 6
        for one, other in zip(seen[:3], seen[3:], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        torch.testing.assert_close(given, expected, rtol=0, atol=2e-5)
        assert (given - fused(ids)).abs().max() > 1e-2


def test_a_pattern_is_seen_while_a_fused_model_reads_with_a_cache(model_folders):
    model = sl.load_model(model_folders["llama"], "bridge", device="cpu", attention="sdpa")
    expected = sl.generate(model, "the cat", max_new_tokens=6)
    widths: list[int] = []
    with Lens.of(model).hooks([("blocks.1.attn.hook_pattern", lambda x: widths.append(x.shape[-1]))]):
        assert sl.generate(model, "the cat", max_new_tokens=6) == expected
    assert widths == sorted(widths)
    assert len(set(widths)) > 1


def test_a_copy_of_a_fused_model_runs_its_own_weights(model_folders):
    model = sl.load_model(model_folders["llama"], "bridge", device="cpu", attention="sdpa")
    ids = tokens(1, 9)
    before = model(ids)
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(ids), before, rtol=0, atol=0)
    copied.blocks[0].attn.W_O.data.zero_()
    assert not torch.equal(copied(ids), before)
    torch.testing.assert_close(model(ids), before, rtol=0, atol=0)


def test_what_only_a_bridge_can_do_is_refused_of_a_hooked_model(model_folders):
    folder = model_folders["llama"]
    with pytest.raises(sl.InputError, match=r"attention='sdpa' is for a TransformerBridge"):
        sl.load_model(folder, "hooked", attention="sdpa")
    with pytest.raises(sl.InputError, match="device_map is for a TransformerBridge"):
        sl.load_model(folder, "hooked", device_map="auto")
    with pytest.raises(sl.InputError, match="quantization_config is for a TransformerBridge"):
        sl.load_model(folder, "hooked", quantization_config=object())
    with pytest.raises(sl.InputError, match="unknown attention 'flash'"):
        sl.load_model(folder, attention="flash")


def test_a_device_map_that_cannot_be_is_refused_before_loading(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(sl.InputError, match="device and device_map both say"):
        sl.load_model(tmp_path, device="cpu", device_map="auto")
    with pytest.raises(sl.InputError, match="unknown device_map 'everywhere'"):
        sl.load_model(tmp_path, device_map="everywhere")
    for place in ({"": 99}, 99, "cuda:99"):
        with pytest.raises(sl.InputError, match="device 'cuda:99' cannot be used"):
            sl.load_model(tmp_path, device_map=place)
    with pytest.raises(sl.InputError, match="puts weights on 'meta'"):
        sl.load_model(tmp_path, device_map="meta")
    with pytest.raises(sl.InputError, match="unknown device_map True"):
        sl.load_model(tmp_path, device_map=True)


@pytest.mark.parametrize("place", ["cpu", torch.device("cpu"), "disk"])
def test_a_device_map_may_be_one_place(model_folders, place):
    ids = tokens(1, 9)
    whole = sl.load_model(model_folders["llama"], "bridge", device="cpu")
    placed = sl.load_model(model_folders["llama"], device_map=place)
    torch.testing.assert_close(placed(ids), whole(ids), rtol=0, atol=0)


@pytest.mark.parametrize(
    "device_map",
    [{"": "cpu"}, {"model.embed_tokens": "cpu", "model.layers": "cpu", "model": "cpu", "lm_head": "cpu"}],
    ids=["whole", "parts"],
)
def test_a_model_placed_by_a_device_map_gives_the_same_numbers(device_map, model_folders, load_tiny):
    placed = sl.load_model(model_folders["llama"], device_map=device_map)
    other = load_tiny("llama", "bridge")
    ids = tokens(2, 11)
    torch.testing.assert_close(placed(ids), other(ids), rtol=0, atol=0)
    demonstrations, contrasts = _texts()
    found = []
    for model in (placed, other):
        edit = sl.fit(sl.capture(model, demonstrations, progress=False), rank=1)
        heads = sl.head_contributions(model, edit, contrasts).values
        effect = sl.effect(model, edit, contrasts).after_items
        found.append((effect, heads, sl.generate(model, WORDS[0], max_new_tokens=5)))
    assert found[0][2] == found[1][2]
    for given, expected in zip(found[0][:2], found[1][:2], strict=True):
        torch.testing.assert_close(given, expected, rtol=0, atol=0)


def _texts() -> tuple[sl.Demonstrations, sl.Contrasts]:
    one, two = WORDS[0], WORDS[1]
    contrasts = [sl.Contrast(one, f" {two}", f" {one}"), sl.Contrast(two, f" {one}", f" {two}")]
    return sl.Demonstrations([sl.Demonstration(one, f"{one} {two}", f"{one} {one}")] * 2), sl.Contrasts(contrasts)


def test_weights_in_4_bits_are_read_exactly(model_folders):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = sl.load_model(model_folders["llama"], device="cpu", quantization_config=config)
    assert sl.check_model(model).ok
    demonstrations, contrasts = _texts()
    edit = sl.fit(sl.capture(model, demonstrations, progress=False), rank=1)
    assert sl.head_contributions(model, edit, contrasts).closure_error < 1e-4


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_missing_library_for_few_bits_is_named(model_folders):
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    with pytest.raises(sl.UnsupportedModelError, match="bitsandbytes"):
        sl.load_model(model_folders["llama"], device="cpu", quantization_config=config)


def test_every_backend_loads_on_the_cpu_in_float32_by_itself(wide):
    for backend in BACKENDS:
        assert Lens.of(sl.load_model(wide, backend, device="cpu", check=False)).dtype == torch.float32


def test_loading_installs_nothing(monkeypatch):
    """TransformerLens calls pip where a model that sees too has no processor."""
    from transformers import AutoConfig

    asked = []

    def check_call(command, *args, **options):
        asked.append(command)
        raise OSError("nothing is run here")

    monkeypatch.setattr(subprocess, "check_call", check_call)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 8,
    }
    seen = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = AutoConfig.for_model("gemma3", text_config={**sizes, "vocab_size": 64}, vision_config=seen)
    plan = sl.plan(config, backend="bridge", memory="1GB", steps=["load"])
    assert plan["load"].memory > 0
    assert asked == []
    with pytest.raises(OSError, match="nothing is run"):
        subprocess.check_call(["ls"])
