"""Models whose blocks are brought as they run: the numbers of a model that is loaded whole, in less memory."""

import copy
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    FAMILIES,
    N_LAYERS,
    WORDS,
    contrasts,
    demonstrations,
    fitted,
    save_random_weights,
    save_tiny_model,
    sentence,
    tokens,
)
from torch.multiprocessing.reductions import StorageWeakRef

import sea_lens as sl
from sea_lens.evaluation.fingerprints import model_identity
from sea_lens.models.lens import Lens
from sea_lens.models.offload import Offloaded, offload

pytestmark = pytest.mark.model

DISK: Any = {"": "disk"}
# TransformerLens splits their fused queries, keys and values as it loads them.
_FUSED_WEIGHTS = ("gpt2", "pythia")


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def pair(request, model_folders, load_tiny) -> tuple[Any, Any]:
    """A model with its blocks on the disk, and the same one whole."""
    return sl.load_model(model_folders[request.param], device_map=DISK), load_tiny(request.param, "bridge")


@pytest.fixture(scope="module")
def offloaded(model_folders) -> Any:
    """A Llama with its blocks on the disk."""
    return sl.load_model(model_folders["llama"], device_map=DISK)


@pytest.fixture(scope="module")
def both(offloaded, load_tiny) -> list[tuple[Any, sl.SpectralEdit]]:
    """The Llama with its blocks on the disk, and whole, each with the edit that is fitted in it."""
    return [(model, fitted(model)) for model in (offloaded, load_tiny("llama", "bridge"))]


def _is_empty(model: Any) -> bool:
    return all(weight.is_meta for block in Lens.of(model).points.blocks for weight in block.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_logits_of_the_whole_model_or_is_refused(family, model_folders, load_tiny):
    if family in _FUSED_WEIGHTS:
        with pytest.raises(sl.UnsupportedModelError, match="fused"):
            sl.load_model(model_folders[family], device_map=DISK)
        return
    model = sl.load_model(model_folders[family], device_map=DISK)
    assert sl.check_model(model).ok
    assert torch.equal(model(tokens(2, 11)), load_tiny(family, "bridge")(tokens(2, 11)))
    assert _is_empty(model)


def test_capture_fit_effect_and_edited_generation_are_those_of_the_whole_model(pair):
    found = []
    for model in pair:
        edit = fitted(model)
        effect = sl.effect(model, edit, contrasts())
        with edit.applied(model, strength=1.5):
            texts = [sl.generate(model, sentence(seed, 4), max_new_tokens=6) for seed in range(3)]
        own = model.generate("w1 w2 w3", max_new_tokens=5, do_sample=False, verbose=False)
        projections = [matrix for layer in edit.layers for matrix in edit.projections(layer)]
        found.append((projections, [effect.before_items, effect.after_items], texts, own))
    (projections, items, *texts), (expected, expected_items, *expected_texts) = found
    assert texts == expected_texts
    for given, wanted in zip([*projections, *items], [*expected, *expected_items], strict=True):
        assert torch.equal(torch.as_tensor(given), torch.as_tensor(wanted))
    assert _is_empty(pair[0])


@pytest.mark.parametrize("site", ["z", "attn_out", "resid_post"])
def test_every_site_is_captured_as_in_the_whole_model(site, pair):
    given, expected = (fitted(model, site=site) for model in pair)
    for layer in expected.layers:
        for one, other in zip(given.projections(layer), expected.projections(layer), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("method", ["path", "leave_one_out"])
def test_contributions_of_layers_are_those_of_the_whole_model(method, both):
    given, expected = (sl.layer_contributions(model, edit, contrasts(3), method=method) for model, edit in both)
    assert torch.equal(given.values, expected.values)
    assert _is_empty(both[0][0])


def test_contributions_of_directions_are_those_of_the_whole_model(both):
    given, expected = (sl.direction_contributions(model, edit, contrasts(3)) for model, edit in both)
    assert torch.equal(given.values, expected.values)


@pytest.mark.parametrize("method", ["gradient", "sufficiency"])
def test_contributions_of_heads_are_those_of_the_whole_model(method, both):
    given, expected = (sl.head_contributions(model, edit, contrasts(2), method=method) for model, edit in both)
    assert torch.equal(given.values, expected.values)


def test_what_heads_write_is_read_through_weights_that_are_brought(pair):
    given, expected = (sl.head_contributions(model, fitted(model), contrasts(3)) for model in pair)
    assert torch.equal(given.values, expected.values)
    assert given.closure_error == expected.closure_error


def test_a_benchmark_is_scored_as_by_the_whole_model_and_goes_on_where_that_stopped(both, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": sentence(seed, 15)}) for seed in range(4)))
    given, expected = (sl.evaluate(model, "perplexity", path, edit=edit, progress=False) for model, edit in both)
    assert given.scores == expected.scores
    # What a journal tells models apart by.
    one, other = (model_identity(Lens.of(model)) for model, _ in both)
    assert one == other


def test_no_weight_stays_behind_a_pass_that_is_stopped_or_fails(offloaded):
    lens, (ids, mask) = Lens.of(offloaded), (tokens(2, 9), torch.ones(2, 9, dtype=torch.long))

    def fail(x: torch.Tensor) -> None:
        assert not next(lens.points.blocks[1].parameters()).is_meta
        raise RuntimeError("as asked")

    for graph in (torch.no_grad(), torch.enable_grad()):
        with graph:
            lens.read(ids, mask, ["blocks.1.hook_mlp_out"])
            assert _is_empty(offloaded)
            with lens.hooks([("blocks.1.hook_mlp_out", fail)]), pytest.raises(RuntimeError, match="as asked"):
                lens.forward(ids, mask)
            assert _is_empty(offloaded)


def test_a_backward_pass_reads_the_weights_again_and_keeps_none(offloaded, load_tiny, monkeypatch):
    made: list[StorageWeakRef] = []
    value = Offloaded.value

    def seen(self: Offloaded, name: str) -> torch.Tensor:
        found = value(self, name)
        made.append(StorageWeakRef(found.untyped_storage()))
        return found

    monkeypatch.setattr(Offloaded, "value", seen)
    gradients = []
    for model in (load_tiny("llama", "bridge"), offloaded):
        leaf = torch.zeros(32, requires_grad=True)
        with Lens.of(model).hooks([("blocks.0.hook_resid_pre", lambda x, leaf=leaf: x + leaf)]):
            out = model(tokens(2, 9)).logsumexp(-1).sum()
        forward = len(made)
        assert all(one.expired() for one in made)
        out.backward()
        gradients.append(leaf.grad)
    assert forward >= 9 * N_LAYERS
    assert len(made) > forward
    assert all(one.expired() for one in made)
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)


def test_what_reads_weights_outside_of_a_pass_reads_the_right_ones(pair):
    given, expected = (Lens.of(model) for model in pair)
    for layer in range(N_LAYERS):
        assert torch.equal(given.attention_weight(layer), expected.attention_weight(layer))
    for (name, one), (other_name, other) in zip(given.all_weights(), expected.all_weights(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    assert given.device == given.layer_device(1) == torch.device("cpu")
    assert given.record["processing"] == expected.record["processing"]
    assert _is_empty(pair[0])


def test_a_copy_runs_by_itself_and_leaves_the_original_alone(offloaded):
    expected = offloaded(tokens())
    copied = copy.deepcopy(offloaded)
    assert torch.equal(copied(tokens()), expected)
    gone = weakref.ref(copied)
    del copied
    assert torch.equal(offloaded(tokens()), expected)
    assert gone() is None or _is_empty(gone())


def test_layers_stay_or_are_brought_as_the_device_map_says(model_folders, load_tiny):
    device_map: Any = {"": "cpu", "model.layers": "disk", "model.layers.1": "cpu", "lm_head": "disk"}
    model = sl.load_model(model_folders["llama"], device_map=device_map)
    lens = Lens.of(model)
    assert [lens.offloaded(layer) is not None for layer in range(N_LAYERS)] == [True, False, True]
    facts = sl.check_model(model).to_frame().set_index("name")["measured"]
    assert facts["layers whose weights are brought for each pass"] == "[0, 2]"
    # What every pass and every readout takes stays where passes run.
    assert not lens.unembedding.is_meta
    assert torch.equal(model(tokens()), load_tiny("llama", "bridge")(tokens()))


def test_layers_that_do_not_fit_the_memory_are_brought(model_folders, load_tiny):
    whole = load_tiny("llama", "bridge")
    block = sum(weight.numel() * 4 for weight in whole.blocks[0].parameters())
    around = sum(weight.numel() * 4 for weight in whole.parameters()) - N_LAYERS * block
    # accelerate keeps room for one more block, through which the others are brought.
    limit: Any = {"cpu": around + 2 * block + block // 2}
    model = sl.load_model(model_folders["llama"], device_map="auto", max_memory=limit)
    stays = [Lens.of(model).offloaded(layer) is None for layer in range(N_LAYERS)]
    assert stays == [True, False, False]
    assert torch.equal(model(tokens()), whole(tokens()))
    everything = sl.load_model(model_folders["llama"], device_map="auto", max_memory={"cpu": "1GiB"}, check=False)
    assert not any(weight.is_meta for weight in everything.parameters())


def test_weights_are_brought_in_the_dtype_that_was_asked_for(model_folders, load_tiny):
    model = sl.load_model(model_folders["llama"], device_map=DISK, dtype="bfloat16")
    assert torch.equal(model(tokens()), load_tiny("llama", "bridge", torch.bfloat16)(tokens()))
    model.to(torch.float64)
    assert model(tokens()).dtype == torch.float64


def test_a_checkpoint_in_many_files_is_read_where_it_lies(model_folders, load_tiny, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folders["llama"]
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="30KB")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert sum(name.endswith(".safetensors") for name in before) > 2
    model = sl.load_model(tmp_path, device_map=DISK)
    assert torch.equal(model(tokens()), load_tiny("llama", "bridge")(tokens()))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_checkpoint_that_cannot_be_read_in_parts_needs_a_folder(model_folders, load_tiny, tmp_path):
    from safetensors.torch import load_file

    for path in model_folders["llama"].iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(model_folders["llama"] / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(sl.UnsupportedModelError, match="offload_folder"):
        sl.load_model(tmp_path, device_map=DISK)
    model = sl.load_model(tmp_path, device_map=DISK, offload_folder=tmp_path / "again")
    assert torch.equal(model(tokens()), load_tiny("llama", "bridge")(tokens()))


def test_experts_that_are_put_together_anew_are_written_once_and_brought(tmp_path):
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig

    sizes: Any = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    save_tiny_model("llama", tmp_path)
    save_random_weights(MixtralConfig(**sizes), tmp_path, 0.15)
    whole = sl.load_model(tmp_path, "bridge", device="cpu")
    model = sl.load_model(tmp_path, device_map=DISK, offload_folder=tmp_path / "again")
    assert torch.equal(model(tokens()), whole(tokens()))
    assert _is_empty(model)


def test_weights_are_brought_from_the_memory_of_the_cpu_as_well(model_folders):
    from accelerate import cpu_offload
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(model_folders["llama"], attn_implementation="eager").eval()
    ids = tokens()
    with torch.no_grad():
        expected = model(ids).logits
        cpu_offload(model, torch.device("cpu"))
        model.hf_device_map = {f"model.layers.{layer}": "cpu" for layer in range(N_LAYERS)}
        offload(model, dict.fromkeys(model.hf_device_map, torch.device("cpu")))
        assert all(weight.is_meta for weight in model.model.layers.parameters())
        assert torch.equal(model(ids).logits, expected)
        assert all(weight.is_meta for weight in model.model.layers.parameters())
    assert not hasattr(model, "hf_device_map")


def test_what_needs_the_weights_at_hand_is_refused(offloaded):
    pytest.importorskip("peft")
    with pytest.raises(sl.UnsupportedModelError, match=r"weights of layer 0 .* are brought for each pass"):
        sl.lora(offloaded, demonstrations(2), rank=1, epochs=1, progress=False)


def test_gradients_of_weights_that_are_brought_are_refused(model_folders):
    model = sl.load_model(model_folders["llama"], device_map=DISK, check=False)
    model.requires_grad_(True)
    with pytest.raises(sl.UnsupportedModelError, match=r"is brought for each pass and takes no gradient"):
        model(tokens())


def test_a_placement_that_cannot_be_is_refused_before_loading(tmp_path, model_folders):
    (tmp_path / "config.json").write_text("{}")
    wrong: Any = {"": "meta"}
    with pytest.raises(sl.InputError, match="'meta', which holds no numbers"):
        sl.load_model(tmp_path, device_map=wrong)
    for device_map in (None, DISK):
        with pytest.raises(sl.InputError, match="max_memory says how a device_map such as 'auto' may spread"):
            sl.load_model(tmp_path, device_map=device_map, max_memory={"cpu": "1GiB"})
    with pytest.raises(sl.UnsupportedModelError, match="which weights in few bits cannot be"):
        sl.load_model(tmp_path, device_map=DISK, quantization_config=object())
    unknown: Any = {"": "cpu", "transformer.h": "disk"}
    with pytest.raises(sl.InputError, match=r"names 'transformer.h', which the model does not have"):
        sl.load_model(model_folders["llama"], device_map=unknown)
    partial: Any = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.2": "disk"}
    with pytest.raises(sl.InputError, match=r"does not say where 'model.layers.1' goes"):
        sl.load_model(model_folders["llama"], device_map=partial)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of memory")
def test_load_capture_and_generation_take_a_fraction_of_the_weights(tmp_path, model_folders):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    sizes = {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 8, "num_attention_heads": 6}
    config = AutoConfig.for_model("llama", vocab_size=1024, max_position_embeddings=128, **sizes)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(save_tiny_model("llama", tmp_path / "tiny")).save_pretrained(tmp_path)

    def resident(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    def whole_job(folder: Path) -> int:
        model = sl.load_model(folder, device_map=DISK)
        edit = sl.fit(sl.capture(model, demonstrations(2), progress=False), rank=1)
        with edit.applied(model):
            sl.generate(model, WORDS[0], max_new_tokens=2)
        return sum(weight.numel() * weight.element_size() for weight in model.parameters())

    whole_job(model_folders["llama"])
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the count cannot be set back here")
    before = resident("VmRSS")
    size = whole_job(tmp_path)
    assert (resident("VmHWM") - before) / size < 0.5
