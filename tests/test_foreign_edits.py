"""Edits from other tools' files: each does what its own library does, and comes back through that library's reader."""

import json
import pickle
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny import N_LAYERS, contrasts, demonstrations, fitted, save_random_weights, sentence, tokens
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.configuration_llama import LlamaConfig

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.paper.released import NormOverTokens

gguf = pytest.importorskip("gguf")
steering_vectors = pytest.importorskip("steering_vectors")

WIDTH = 32
MODULES = {
    "llama": ("model.layers.{}", "self_attn", "mlp"),
    "gpt2": ("transformer.h.{}", "attn", "mlp"),
    "pythia": ("gpt_neox.layers.{}", "attention", "mlp"),
    "gemma2": ("model.layers.{}", "self_attn", "mlp"),
}


def random_vectors(*layers: int, width: int = WIDTH, seed: int = 0) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(width, generator=generator) for layer in layers}


def write_gguf(path: Path, directions: dict[Any, np.ndarray], architecture: str = "controlvector") -> Path:
    """A file of the fields and tensors that repeng's `ControlVector.export_gguf` writes."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string(f"{architecture}.model_hint", "llama")
    writer.add_uint32(f"{architecture}.layer_count", len(directions))
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_gguf(path: Path) -> tuple[str, dict[int, np.ndarray]]:
    """Model hint and directions, as repeng's `ControlVector.import_gguf` reads them."""
    reader = gguf.GGUFReader(path)
    hint = bytes(reader.get_field("controlvector.model_hint").parts[-1]).decode()
    return hint, {int(one.name.split(".")[1]): one.data for one in reader.tensors if one.name.startswith("direction.")}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def original(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def outputs(hf: Any, names: list[str], ids: torch.Tensor) -> list[torch.Tensor]:
    """What these modules of a Hugging Face model give, behind hooks that are there already, and the logits."""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for name in names:
        hook = partial(lambda name, module, inputs, output: found.update({name: first(output).clone()}), name)
        handles.append(hf.get_submodule(name).register_forward_hook(hook))
    logits = hf(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    return [*(found[name] for name in names), logits]


@torch.no_grad()
def activations(model: Any, edit: Any, site: str, ids: torch.Tensor, **where: Any) -> list[torch.Tensor]:
    """Activations of a site in all layers, edited, and the logits."""
    with edit.applied(model, **where):
        logits, cache = model.run_with_cache(ids)
    return [*(cache[Lens.of(model).point(site, layer)] for layer in range(N_LAYERS)), logits]


def agree(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    """Activations to 1e-5, relative to their size."""
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() < 1e-5 * max(1.0, float(other.abs().max()))


def trained(folder: Path, kind: Any, layers: list[int] | None = None) -> Any:
    """A vector that the steering-vectors library trains, on random texts."""
    pairs = [(f"{sentence(i, 5)} {sentence(100 + i, 2)}", f"{sentence(i, 5)} {sentence(200 + i, 2)}") for i in range(6)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return steering_vectors.train_steering_vector(
        original(folder), tokenizer, pairs, layers=layers, layer_type=kind, show_progress=False
    )


KINDS = {"decoder_block": "resid_post", "self_attn": "attn_out", "mlp": "mlp_out"}


@pytest.mark.model
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("family", ["llama", "gpt2", "pythia"])
def test_a_vector_of_the_steering_vectors_library_does_what_its_apply_does(
    family, kind, backend, load_tiny, model_folders, tmp_path
):
    vector, model, ids = trained(model_folders[family], kind, [0, 2]), load_tiny(family, backend), tokens()
    edit = sl.load_edit(saved(tmp_path / "vector.pt", vector))
    assert isinstance(edit, sl.GivenVectors)
    assert (edit.site, edit.layers, edit.defaults.positions) == (KINDS[kind], (0, 2), "all")
    block, attention, mlp = MODULES[family]
    part = {"decoder_block": "", "self_attn": f".{attention}", "mlp": f".{mlp}"}[kind]
    names, hf = [f"{block.format(layer)}{part}" for layer in range(N_LAYERS)], original(model_folders[family])
    for multiplier in (1.0, -2.5):
        with vector.apply(hf, multiplier=multiplier):
            theirs = outputs(hf, names, ids)
        agree(activations(model, edit, KINDS[kind], ids, strength=multiplier), theirs)
    assert (theirs[-1] - outputs(hf, names, ids)[-1]).abs().max() > 1e-3


@pytest.mark.model
def test_a_file_of_repengs_adds_to_the_output_of_each_block(any_model, model_folders, tmp_path, request):
    family = request.node.callspec.params["any_model"][0]
    directions = random_vectors(0, 2)
    edit = sl.load_edit(write_gguf(tmp_path / "v.gguf", {layer: one.numpy() for layer, one in directions.items()}))
    assert isinstance(edit, sl.GivenVectors)
    assert (edit.site, edit.layers, edit.defaults.positions) == ("resid_post", (0, 2), "all")
    assert edit.provenance["model"]["model_type"] == "llama"
    assert edit.provenance["source"] == {"file": str(tmp_path / "v.gguf"), "format": "repeng"}
    hf, ids = original(model_folders[family]), tokens()
    block = MODULES.get(family, MODULES["llama"])[0]
    names = [block.format(layer) for layer in range(N_LAYERS)]

    def adding(vector):
        def hook(module, inputs, output):
            return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

        return hook

    for layer, direction in directions.items():
        hf.get_submodule(names[layer]).register_forward_hook(adding(1.5 * direction))
    agree(activations(any_model, edit, "resid_post", ids, strength=1.5), outputs(hf, names, ids))


STEERED = [
    ("llama", "layers.{}", "resid_post"),
    ("gpt2", "h.{}.attn", "attn_out"),
    ("pythia", "layers.{}.mlp", "mlp_out"),
]


@pytest.mark.model
@pytest.mark.parametrize(("family", "name", "site"), STEERED)
def test_vectors_of_the_harness_do_what_its_steered_model_does(
    family, name, site, load_tiny, backend, model_folders, tmp_path
):
    harness = pytest.importorskip("lm_eval.models.hf_steered")
    config = {
        name.format(layer): {"action": "add", "steering_vector": vector, "steering_coefficient": scale, "bias": None}
        for scale, (layer, vector) in zip((2.0, -0.5), random_vectors(0, 1).items(), strict=True)
    }
    edit = sl.load_edit(saved(tmp_path / "steer.pt", config))
    assert isinstance(edit, sl.GivenVectors)
    assert (edit.site, edit.layers, edit.defaults.positions) == (site, (0, 1), "all")
    hf, ids = original(model_folders[family]), tokens()
    added = {
        hook: partial(harness.SteeredModel.add, vector=one["steering_vector"] * one["steering_coefficient"])
        for hook, one in config.items()
    }
    block, _, part = MODULES[family][0], *name.split(".{}")
    names = [f"{block.format(layer)}{part}" for layer in range(N_LAYERS)]
    with harness.steer(hf, {hook: partial(one, head_index=None) for hook, one in added.items()}):
        theirs = outputs(hf, names, ids)
    agree(activations(load_tiny(family, backend), edit, site, ids), theirs)


@pytest.mark.parametrize(
    ("name", "site", "layer"),
    [
        ("layers.3", "resid_post", 3),
        ("gpt_neox.layers.3", "resid_post", 3),
        ("model.layers.11.mlp", "mlp_out", 11),
        ("base_model.model.model.layers.0.self_attn", "attn_out", 0),
        ("transformer.h.2.attn", "attn_out", 2),
        ("layers.5.attention", "attn_out", 5),
        ("decoder.layers.1.self_attn", "attn_out", 1),
    ],
)
def test_layer_and_site_are_in_the_name_of_the_module(name, site, layer, tmp_path):
    edit = sl.load_edit(saved(tmp_path / "s.pt", {name: {"action": "add", "steering_vector": torch.ones(4)}}))
    assert (edit.site, edit.layers) == (site, (layer,))


def entry(**other: Any) -> dict[str, Any]:
    return {"action": "add", "steering_vector": torch.ones(4), "steering_coefficient": 1.0, **other}


NOT_SAID = {
    "clamping": ({"layers.3": entry(action="clamp")}, "its action at 'layers.3' is 'clamp'"),
    "a single head": ({"layers.3": entry(head_index=2)}, "it has a head_index at 'layers.3'"),
    "a bias": ({"layers.3": entry(bias=torch.ones(4))}, "it has a bias at 'layers.3'"),
    "a module that is no site": ({"layers.3.mlp.down_proj": entry()}, "'layers.3.mlp.down_proj' is no site"),
    "another norm": ({"layers.3.input_layernorm": entry()}, "'layers.3.input_layernorm' is no site"),
    "a hook of TransformerLens": ({"blocks.3.hook_resid_post": entry()}, "'blocks.3.hook_resid_post' is no site"),
    "two sites": ({"layers.3": entry(), "layers.2.mlp": entry()}, "acts at 'layers.3', 'layers.2.mlp'"),
    "a layer twice": ({"layers.3": entry(), "model.layers.3": entry()}, "are the same layer"),
    "a coefficient that is none": ({"layers.3": entry(steering_coefficient=float("nan"))}, "steering_coefficient"),
    "no vector": ({"layers.3": {"action": "add"}}, "steering_vector"),
    "a matrix": ({"layers.3": entry(steering_vector=torch.ones(2, 4))}, r"shape \(2, 4\): expected one axis"),
    "whole numbers": ({"layers.3": entry(steering_vector=torch.ones(4).long())}, "no floating-point numbers"),
    "NaN": ({"layers.3": entry(steering_vector=torch.full((4,), torch.nan))}, "layer 3 holds NaN"),
    "other lengths": ({"layers.3": entry(), "layers.2": entry(steering_vector=torch.ones(5))}, "lengths {2: 5, 3: 4}"),
    "more numbers than there are": (
        {"layers.3": entry(steering_vector=torch.ones(1).expand(10**12))},
        "more numbers than the file holds",
    ),
    "one tensor": (torch.ones(3, 4), r"a tensor of shape \(3, 4\), and not which layer and site"),
    "a list": ([1], "holds a list: expected"),
    "nothing": ({}, "holds a dict: expected"),
    "vectors by number": ({3: torch.ones(4)}, "holds a dict: expected"),
}


@pytest.mark.parametrize("case", list(NOT_SAID))
def test_what_cannot_be_said_as_an_edit_is_one_clear_error(case, tmp_path):
    content, message = NOT_SAID[case]
    path = saved(tmp_path / "foreign.pt", content)
    with pytest.raises(sl.FileError, match=message) as caught:
        sl.load_edit(path)
    assert str(path) in str(caught.value)


def test_a_table_of_autoencoder_features_is_refused(tmp_path):
    (tmp_path / "steer.csv").write_text("loader,action,sparse_model,hookpoint,feature_index\n")
    with pytest.raises(sl.FileError, match=r"steer\.csv is a table.* sparse autoencoders"):
        sl.load_edit(tmp_path / "steer.csv")


LIBRARY = {
    "norms": ({0: torch.ones(4)}, "input_layernorm", "layer_type 'input_layernorm', expected one of decoder_block"),
    "a layer from the end": ({-1: torch.ones(4)}, "mlp", "its layer -1 is no layer counted from 0"),
    "no vectors": ({}, "mlp", "no vectors by layer"),
    "no tensors": ({0: [1.0]}, "mlp", "the vector of layer 0 is no plain tensor"),
    "NaN": ({0: torch.tensor([torch.nan])}, "mlp", "layer 0 holds NaN"),
}


@pytest.mark.parametrize("case", list(LIBRARY))
def test_a_steering_vector_that_cannot_be_said_is_refused(case, tmp_path):
    vectors, kind, message = LIBRARY[case]
    with pytest.raises(sl.FileError, match=rf"vector\.pt cannot be read as a SteeringVector .*{message}"):
        sl.load_edit(saved(tmp_path / "vector.pt", steering_vectors.SteeringVector(vectors, kind)))


def test_reading_a_steering_vector_needs_no_package(tmp_path, monkeypatch):
    path = saved(tmp_path / "vector.pt", steering_vectors.SteeringVector(random_vectors(1), "mlp"))
    for name in [name for name in sys.modules if name.split(".")[0] == "steering_vectors"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert sl.load_edit(path).layers == (1,)


@pytest.mark.model
def test_where_a_norm_stands_behind_the_module_its_vectors_are_refused(load_tiny, model_folders, backend, tmp_path):
    model = load_tiny("gemma2", backend)
    for kind in ("mlp", "self_attn"):
        vector = steering_vectors.SteeringVector(random_vectors(1), kind)
        edit = sl.load_edit(saved(tmp_path / f"{kind}.pt", vector))
        with pytest.raises(sl.UnsupportedModelError, match="a norm behind what its layers"), edit.applied(model):
            pass
    vector = trained(model_folders["gemma2"], "decoder_block", [1])
    edit, hf = sl.load_edit(saved(tmp_path / "block.pt", vector)), original(model_folders["gemma2"])
    names = [MODULES["gemma2"][0].format(layer) for layer in range(N_LAYERS)]
    with vector.apply(hf):
        theirs = outputs(hf, names, tokens())
    agree(activations(model, edit, "resid_post", tokens()), theirs)


@pytest.mark.model
@pytest.mark.parametrize("name", ["olmo2", "olmo3"])
def test_a_norm_behind_the_module_is_seen_where_no_norm_is_in_front(name, backend, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "analyses"))
    from zoo_models import CASES

    folder = next(case for case in CASES if case.name == name).write(tmp_path / name)
    try:
        model = sl.load_model(str(folder), backend, device="cpu", dtype=torch.float32)
    except sl.SeaLensError:
        pytest.skip("this TransformerLens makes another model of it")
    width = Lens.of(model).d_model
    for kind in KINDS:
        vector = steering_vectors.SteeringVector(random_vectors(0, width=width), kind)
        edit, ids, hf = sl.load_edit(saved(tmp_path / "v.pt", vector)), tokens(1, 6), original(folder)
        if kind != "decoder_block":
            with pytest.raises(sl.UnsupportedModelError, match="a norm behind"), edit.applied(model):
                pass
            continue
        with edit.applied(model), vector.apply(hf), torch.no_grad():
            agree([model(ids).log_softmax(-1)], [hf(input_ids=ids).logits.log_softmax(-1)])


@pytest.mark.model
def test_an_edit_of_another_model_is_refused(model, tmp_path):
    vectors = steering_vectors.SteeringVector({0: torch.ones(8)})
    with pytest.raises(sl.MismatchError, match=r"\(1, 8\)"):
        sl.effect(model, sl.load_edit(saved(tmp_path / "narrow.pt", vectors)), contrasts())
    deep = steering_vectors.SteeringVector(random_vectors(40))
    with pytest.raises(sl.MismatchError, match=r"layers \[40\]"):
        sl.effect(model, sl.load_edit(saved(tmp_path / "deep.pt", deep)), contrasts())


@pytest.mark.model
def test_all_analyses_run_on_a_loaded_edit(model, tmp_path):
    edit = sl.load_edit(
        write_gguf(tmp_path / "v.gguf", {layer: one.numpy() for layer, one in random_vectors(0, 1).items()})
    )
    assert isinstance(edit, sl.GivenVectors)
    effect = sl.effect(model, edit, contrasts())
    layers = sl.layer_contributions(model, edit, contrasts(), progress=False)
    assert float(layers.values.sum()) == pytest.approx(effect.effect, abs=1e-3)
    heads = sl.head_contributions(model, edit, contrasts(), progress=False)
    assert torch.isfinite(heads.values).all()
    assert len(sl.geometry(fitted(model, site="resid_post"), edit).to_frame()) > 0


@pytest.mark.model
def test_a_loaded_edit_is_saved_and_loaded_as_any_other(model, tmp_path):
    edit = sl.load_edit(saved(tmp_path / "vector.pt", steering_vectors.SteeringVector(random_vectors(0, 1), "mlp")))
    assert isinstance(edit, sl.GivenVectors)
    edit.with_defaults(strength=2.0).save(tmp_path / "edit.safetensors")
    again = sl.load_edit(tmp_path / "edit.safetensors")
    assert isinstance(again, sl.GivenVectors)
    assert (again.digest, again.provenance) == (edit.digest, edit.provenance)
    assert again.defaults.positions == "all"
    agree(activations(model, again, "mlp_out", tokens()), activations(model, edit, "mlp_out", tokens(), strength=2.0))


def released(folder: Path, shared: Path, name: str = "linear.uncentred", begin: str = "") -> dict[str, Any]:
    """The golden file's projections as the released code writes them; what else the file has of them."""
    with safe_open(shared / "golden" / "official_sea.safetensors", "pt") as file:
        found: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys() if key.startswith(name)}  # noqa: SIM118
        found |= {key: file.get_tensor(key) for key in ("tokens_prefill", "tokens_decode")}
        found["k"] = json.loads(file.metadata()[f"{name}.k"])
    for sign in ("positive", "negative"):
        torch.save(found[f"{name}.uu_{sign}"], folder / f"{begin}uu_{sign}.pt")
    return found


@pytest.mark.parametrize("begin", ["", "no_mean_sub_"])
@pytest.mark.parametrize("name", ["linear.uncentred", "tanh.uncentred", "linear.feature_mean"])
def test_the_releases_projections_come_back_from_their_factors(name, begin, shared, tmp_path):
    golden = released(tmp_path, shared, name, begin)
    loaded = []
    for path in (tmp_path, tmp_path / f"{begin}uu_positive.pt", tmp_path / f"{begin}uu_negative.pt"):
        with pytest.warns(sl.SeaLensWarning, match="norms of each coordinate over tokens"):
            loaded.append(sl.load_edit(path))
    edit = loaded[0]
    assert isinstance(edit, sl.SpectralEdit)
    assert len({one.digest for one in loaded}) == 1
    assert (edit.site, edit.feature.name, edit.n, edit.signature) == ("mlp_out", "identity", None, None)
    assert edit.ranks == {layer: tuple(pair) for layer, pair in enumerate(golden["k"])}
    for layer in edit.layers:
        for sign, ours in zip(("positive", "negative"), edit.projections(layer), strict=True):
            assert (ours - golden[f"{name}.uu_{sign}"][layer]).abs().max() < 1e-5
    edit.save(tmp_path / "edit.safetensors")
    again = sl.load_edit(tmp_path / "edit.safetensors")
    assert isinstance(again, sl.SpectralEdit)
    assert (again.digest, again.ranks) == (edit.digest, edit.ranks)
    with pytest.raises(sl.InputError, match="needs layer signatures"):
        again.choose_layers("signature-1")


@pytest.mark.model
@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
def test_the_releases_edit_gives_the_releases_activations(shared, backend, model_folders, tmp_path):
    golden = released(tmp_path, shared)
    edit = sl.load_edit(tmp_path)
    assert isinstance(edit, sl.SpectralEdit)
    config = LlamaConfig(
        vocab_size=64, hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4
    )
    save_random_weights(config, tmp_path / "model", 0.1)
    AutoTokenizer.from_pretrained(model_folders["llama"]).save_pretrained(tmp_path / "model")
    model = sl.load_model(str(tmp_path / "model"), backend, device="cpu", dtype=torch.float32)
    point = Lens.of(model).point("mlp_out", 0)
    for name, applied, combine in (("l2_norm", NormOverTokens.of(edit), None), ("average", edit, "average")):
        for step in ("prefill", "decode"):
            given = golden[f"tokens_{step}"]
            put = model.hooks(fwd_hooks=[(point, lambda x, hook, given=given: given)])
            # The edit stands behind the hook that puts the given activations there.
            with put, applied.applied(model, layers=[0], combine=combine):
                _, cache = model.run_with_cache(tokens(1, given.shape[1]))
            expected = golden[f"linear.uncentred.adapter.{name}.{step}"]
            assert (cache[point] - expected).abs().max() < 1e-5


RELEASED = {
    "no projection": (lambda x: 0.5 * x, "the matrix of layer 0 is no projection"),
    "not symmetric": (lambda x: x + torch.triu(torch.ones_like(x), 1), "is no projection"),
    "not square": (lambda x: x[:, :, 1:], r"expected \(layers, d, d\)"),
    "no layers": (lambda x: x[0], r"expected \(layers, d, d\)"),
    "NaN": (lambda x: x * torch.nan, "holds NaN"),
    "of other layers": (lambda x: x[:1].repeat(5, 1, 1), "has shape"),
    "no tensor": (lambda x: {"a": 1}, "it is no plain tensor"),
}


@pytest.mark.parametrize("case", list(RELEASED))
def test_matrices_that_are_no_pair_of_projections_are_refused(case, tmp_path):
    change, message = RELEASED[case]
    projection = torch.diag(torch.tensor([1.0, 1.0, 0.0])).repeat(2, 1, 1)
    saved(tmp_path / "uu_positive.pt", projection)
    saved(tmp_path / "uu_negative.pt", change(projection))
    with pytest.raises(sl.FileError, match=message):
        sl.load_edit(tmp_path)


@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
def test_a_side_that_keeps_or_drops_nothing_is_one_too(tmp_path):
    saved(tmp_path / "uu_positive.pt", torch.zeros(2, 4, 4))
    saved(tmp_path / "uu_negative.pt", torch.eye(4).repeat(2, 1, 1))
    edit = sl.load_edit(tmp_path)
    assert isinstance(edit, sl.SpectralEdit)
    assert edit.ranks == {0: (0, 0), 1: (0, 0)}


def test_one_of_the_two_files_alone_and_two_pairs_are_refused(tmp_path):
    saved(tmp_path / "uu_positive.pt", torch.eye(2)[None])
    with pytest.raises(sl.FileError, match=r"uu_negative\.pt: no such file"):
        sl.load_edit(tmp_path / "uu_positive.pt")
    saved(tmp_path / "uu_negative.pt", torch.eye(2)[None])
    saved(tmp_path / "no_mean_sub_uu_positive.pt", torch.eye(2)[None])
    with pytest.raises(sl.FileError, match="expected the path of one"):
        sl.load_edit(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(sl.FileError, match="is a folder"):
        sl.load_edit(tmp_path / "empty")


GGUF = {
    "of a model": (lambda path: write_gguf(path, {0: np.ones(4, np.float32)}, "llama"), "architecture 'llama'"),
    "a layer from the end": (lambda path: write_gguf(path, {-1: np.ones(4, np.float32)}), "tensor 'direction.-1'"),
    "another tensor": (lambda path: write_gguf(path, {"1.weight": np.ones(4, np.float32)}), "'direction.1.weight'"),
    "whole numbers": (lambda path: write_gguf(path, {0: np.ones(4, np.int32)}), "is of type I32"),
    "a matrix": (lambda path: write_gguf(path, {0: np.ones((2, 4), np.float32)}), "expected one axis"),
    "NaN": (lambda path: write_gguf(path, {0: np.full(4, np.nan, np.float32)}), "layer 0 holds NaN"),
    "no directions": (lambda path: write_gguf(path, {}), "expected one for each layer"),
    "the magic alone": (lambda path: path.write_bytes(b"GGUF"), ""),
}


@pytest.mark.parametrize("case", list(GGUF))
def test_a_gguf_file_of_something_else_is_refused(case, tmp_path):
    path = tmp_path / "v.gguf"
    write, message = GGUF[case]
    write(path)
    with pytest.raises(sl.FileError, match=rf"v\.gguf cannot be read as repeng's control vectors.*{message}"):
        sl.load_edit(path)


def test_a_gguf_file_that_claims_more_than_it_holds_is_refused_at_once(tmp_path):
    """An array that says it has 2⁶² numbers would be read for years."""
    # As many numbers as need no padding, so that no byte is one too many.
    path = write_gguf(tmp_path / "v.gguf", {0: np.ones(8, np.float32)})
    whole = path.read_bytes()
    key = b"controlvector.model_hint"
    claim = len(key).to_bytes(8, "little") + key + (9).to_bytes(4, "little") + (0).to_bytes(4, "little")
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little") + claim)
    with path.open("ab") as file:
        file.write((2**62).to_bytes(8, "little"))
    with pytest.raises(sl.FileError, match="it is truncated"):
        sl.load_edit(path)
    for end in range(5, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(sl.FileError, match=r"v\.gguf cannot be read"):
            sl.load_edit(path)


class Trap:
    """Would make a file when it is read."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("name", ["vector.pt", "uu_positive.pt"])
def test_code_in_a_file_is_refused_and_not_run(name, tmp_path):
    path, trapped = tmp_path / name, tmp_path / "trapped"
    (tmp_path / "uu_negative.pt").write_bytes(b"")
    for content in (Trap(trapped), {"layers.3": entry(bias=Trap(trapped))}, {0: np.float64(1)}):
        with pytest.raises(sl.FileError, match=rf"{name}.*(code in a file is never run|damaged)"):
            sl.load_edit(saved(path, content))
    assert not trapped.exists()


def test_damaged_and_compressed_archives_are_refused(tmp_path):
    path = saved(tmp_path / "vector.pt", steering_vectors.SteeringVector(random_vectors(0)))
    whole = path.read_bytes()
    for end in (4, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(sl.FileError, match=r"vector\.pt cannot be read as tensors"):
            sl.load_edit(path)
    path.write_bytes(whole)
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for one in source.namelist():
            target.writestr(one, source.read(one))
    with pytest.raises(sl.FileError, match="a compressed archive"):
        sl.load_edit(packed)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(sl.FileError, match="pickles are never read"):
        sl.load_edit(tmp_path / "plain.pkl")


PROVENANCE = {"model": {"n_layers": N_LAYERS}}


def steering(site: str = "resid_post", layers: tuple[int, ...] = (0, 1, 2), **other: Any) -> sl.MeanDifference:
    vectors = {layer: one[None].double() for layer, one in random_vectors(*layers).items()}
    return sl.MeanDifference(site, vectors, None, PROVENANCE).with_defaults(positions="all", **other)


def test_what_is_written_for_repeng_its_reader_takes(tmp_path):
    edit = steering(strength=2.0)
    sl.save_as(edit, tmp_path / "v.gguf", "repeng", layers="last-2", model_type="llama")
    hint, directions = read_gguf(tmp_path / "v.gguf")
    assert (hint, sorted(directions)) == ("llama", [1, 2])
    for layer, direction in directions.items():
        assert direction.dtype == np.float32
        np.testing.assert_allclose(direction, 2.0 * edit.vectors[layer][0].numpy(), rtol=1e-6)
    loaded = sl.load_edit(tmp_path / "v.gguf")
    # A file that was read says its kind of model.
    sl.save_as(loaded, tmp_path / "again.gguf", "repeng", strength={1: 0.5, 2: 1.0})
    again = read_gguf(tmp_path / "again.gguf")
    assert again[0] == "llama"
    np.testing.assert_allclose(again[1][1], directions[1] / 2, rtol=1e-6)


@pytest.mark.model
@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_written_for_steering_vectors_its_own_apply_takes(kind, model, model_folders, tmp_path):
    edit = steering(KINDS[kind])
    sl.save_as(edit, tmp_path / "v.pt", "steering-vectors", layers=[1], strength=-1.5)
    with torch.serialization.safe_globals([steering_vectors.SteeringVector]):
        vector = torch.load(tmp_path / "v.pt", weights_only=True)
    assert type(vector) is steering_vectors.SteeringVector
    block, attention, mlp = MODULES["llama"]
    part = {"decoder_block": "", "self_attn": f".{attention}", "mlp": f".{mlp}"}[kind]
    hf, names = original(model_folders["llama"]), [f"{block.format(layer)}{part}" for layer in range(N_LAYERS)]
    with vector.apply(hf):
        theirs = outputs(hf, names, tokens())
    agree(activations(model, edit, KINDS[kind], tokens(), layers=[1], strength=-1.5), theirs)
    agree(activations(model, sl.load_edit(tmp_path / "v.pt"), KINDS[kind], tokens()), theirs)


@pytest.mark.model
@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo3"])
def test_an_edit_behind_a_norm_is_not_written_for_a_tool_that_adds_in_front_of_it(family, load_tiny, backend, tmp_path):
    model = load_tiny(family, backend)
    for site in ("mlp_out", "attn_out", "resid_post"):
        # What a file says of the model is what it was saved with.
        sl.mean_difference(sl.capture(model, demonstrations(), site=site, progress=False)).save(tmp_path / "edit")
        edit = sl.load_edit(tmp_path / "edit")
        assert isinstance(edit, sl.MeanDifference)
        save = partial(sl.save_as, edit, tmp_path / "v.pt", "steering-vectors", positions="all")
        if family == "llama" or site == "resid_post":
            save()
            continue
        with pytest.raises(sl.InputError, match=f"has a norm in front of '{site}': steering-vectors adds in front"):
            save()


def test_what_a_format_cannot_say_is_refused(tmp_path):
    heads = sl.ITI("z", {0: torch.ones(1, 4, dtype=torch.float64)}, None, {}, ((0, 0),), torch.ones(1, 1).double())
    x = torch.randn(8, 3, 16)
    spectral: Any = sl.fit_activations(x, x + torch.randn(8, 3, 16), torch.randn(8, 3, 16), rank=1)
    big = sl.MeanDifference("resid_post", {0: torch.full((1, 4), 1e30, dtype=torch.float64)}, None, {})
    cases: list[tuple[Any, str, dict[str, Any], str]] = [
        (spectral, "repeng", {}, "repeng cannot say this edit (SpectralEdit at 'mlp_out')"),
        (heads, "steering-vectors", {"positions": "all"}, "cannot say this edit (ITI at 'z')"),
        (steering("mlp_out"), "repeng", {}, "expected one that adds fixed vectors at 'resid_post'"),
        (steering().with_defaults(positions="answer"), "repeng", {}, "this edit acts at 'answer'"),
        (steering(), "repeng", {}, "expected model_type"),
        (steering(), "repeng", {"strength": torch.ones(3), "model_type": "llama"}, "got a tensor"),
        (big, "steering-vectors", {"strength": 1e30}, "layer 0 times its strength is beyond float32"),
        (steering(), "onnx", {}, "unknown format 'onnx': expected one of repeng, steering-vectors"),
        (steering(), "repeng", {"layers": [7]}, "unknown layers [7]"),
    ]
    for edit, format, options, message in cases:
        with pytest.raises(sl.InputError) as caught:
            sl.save_as(edit, tmp_path / "none", format, **options)
        assert message in str(caught.value)
    assert not (tmp_path / "none").exists()


def test_without_a_package_it_says_how_to_install_it(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "v.gguf", {0: np.ones(4, np.float32)})
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(sl.MissingPackageError, match=r"pip install 'sea-lens\[foreign\]'"):
        sl.load_edit(path)
    monkeypatch.setitem(sys.modules, "steering_vectors", None)
    with pytest.raises(sl.MissingPackageError, match="pip install --no-deps steering-vectors"):
        sl.save_as(steering(), tmp_path / "v.pt", "steering-vectors")
