from typing import Any

import pytest
import torch
from tiny import BACKENDS, FAMILIES, save_tiny_model, tokens

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.models.load import hooked_available, resolved

pytestmark = pytest.mark.model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_backend_gives_the_logits_of_the_original(family, model_folders, load_tiny):
    from transformers import AutoModelForCausalLM

    ids = tokens(3, 20)
    original = AutoModelForCausalLM.from_pretrained(model_folders[family], attn_implementation="eager")
    with torch.no_grad():
        expected = original(input_ids=ids).logits
        for backend in BACKENDS:
            lens = Lens.of(load_tiny(family, backend))
            found = lens.forward(ids, torch.ones_like(ids))
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_a_loaded_model_is_frozen_and_in_evaluation_mode(any_model):
    assert not any_model.training
    assert not any(parameter.requires_grad for parameter in any_model.parameters())


@pytest.mark.parametrize("name", ["my-llama-folder", "gemma-like", "bert5"])
def test_the_name_of_a_folder_misleads_nobody(name, tmp_path, backend):
    folder = save_tiny_model("qwen2", tmp_path / name)
    lens = Lens.of(sl.load_model(str(folder), backend))
    assert lens.name == name
    assert lens.n_layers == 3


def test_a_bfloat16_model_is_one(load_tiny, backend):
    assert Lens.of(load_tiny("llama", backend, torch.bfloat16)).dtype == torch.bfloat16


def test_auto_takes_hooked_where_there_is_one(model_folders):
    lens = Lens.of(sl.load_model(str(model_folders["llama"])))
    assert lens.backend == ("hooked" if hooked_available() else "bridge")


@pytest.mark.skipif(hooked_available(), reason="this TransformerLens has HookedTransformer")
def test_a_missing_hooked_transformer_is_said_clearly(model_folders):
    with pytest.raises(sl.UnsupportedModelError, match="has no HookedTransformer"):
        sl.load_model(str(model_folders["llama"]), "hooked")


def test_wrong_arguments_are_refused(tmp_path, model_folders):
    folder = str(model_folders["llama"])
    with pytest.raises(sl.InputError, match="unknown backend 'nnsight'"):
        sl.load_model(folder, "nnsight")
    with pytest.raises(sl.InputError, match="unknown dtype 'int8'"):
        sl.load_model(folder, dtype="int8")
    with pytest.raises(sl.InputError, match="device 'cuda:99' cannot be used"):
        sl.load_model(folder, device="cuda:99")
    with pytest.raises(sl.FileError, match=r"without config\.json"):
        sl.load_model(str(tmp_path))
    with pytest.raises(sl.FileError, match="no such model folder"):
        sl.load_model("./nowhere/at/all")


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "~nobody-of-this-name/model", "\ud800"])
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(sl.InputError, match="cannot be looked for"):
        sl.load_model(name)


@pytest.mark.parametrize("name", [5, None, b"x", ["x"]])
def test_what_is_no_name_of_a_model_is_refused(name: Any):
    with pytest.raises(sl.InputError, match="as a text or a path"):
        resolved(name)


def test_a_name_that_no_hub_can_be_asked_for_is_said_clearly(backend):
    with pytest.raises(sl.UnsupportedModelError, match="no-such-model-anywhere"):
        sl.load_model("no-such-model-anywhere", backend)


def test_what_is_no_transformer_lens_model_is_refused():
    with pytest.raises(sl.UnsupportedModelError, match=r"expected a TransformerLens model.*got Linear"):
        Lens.of(torch.nn.Linear(2, 2))
