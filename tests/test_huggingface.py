"""Edits in plain Hugging Face models (`sl.hf`, docs/method.md 12.1) against the same edits in TransformerLens."""

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from tiny import BACKENDS, FAMILIES
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.models.plain_model import PlainModel

sys.path.insert(0, str(Path(__file__).parents[1] / "analyses"))
from zoo_models import CASES

SITES = ("mlp_out", "attn_out", "resid_post", "z")
WHERE = {"layers": "last-2", "strength": 1.5}


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory):
    """both(family) is a TransformerLens model and the plain Hugging Face model of one checkpoint."""
    made = {}

    def make(family: str):
        if family not in made:
            folder = tiny.save_tiny_model(family, tmp_path_factory.mktemp("plain") / family)
            # OLMo 2 and 3 run on the bridge alone.
            model = sl.load_model(folder)
            hf_model = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
            made[family] = model, hf_model, AutoTokenizer.from_pretrained(folder)
        return made[family]

    return make


def drawn_edit(shape: tuple[int, ...], site: str = "mlp_out", layers: int = 2) -> sl.SpectralEdit:
    """An edit that is fitted from random activations."""
    drawn = torch.Generator().manual_seed(1)
    neutral, positive, negative = (torch.randn(20, layers, *shape, generator=drawn) for _ in range(3))
    return sl.fit_activations(neutral, positive, negative, site=site, rank=3)


def folder_of(model) -> str:
    """What a model was loaded from."""
    source = Lens.of(model).source
    assert source is not None
    return source


def logits(model, tokens):
    """Logits of a TransformerLens model, on tokens without padding."""
    with torch.no_grad():
        return model(tokens, return_type="logits")


def generated(hf_model, prompts, **options):
    """Tokens that a plain model writes behind left-padded prompts."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    found = hf_model.generate(input_ids=ids, attention_mask=mask, **options)
    return found[:, width:].tolist()


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", [*FAMILIES])
@pytest.mark.model
def test_an_edit_gives_the_logits_that_it_gives_in_transformer_lens(both, family, site):
    model, hf_model, _ = both(family)
    edit, tokens = tiny.fitted(model, site=site, rank=4, centre=True), tiny.tokens()
    with edit.applied(model, **WHERE):
        expected = logits(model, tokens)
    plain = hf_model(tokens).logits
    with sl.hf.applied(hf_model, edit, **WHERE) as same:
        assert same is hf_model
        found = hf_model(tokens).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (found - plain).abs().max() > 1e-2
    torch.testing.assert_close(hf_model(tokens).logits, plain, rtol=0, atol=0)


OF_THE_ZOO = [
    "mixtral",
    "gemma3_text",
    "gpt_neo",
    "gptj",
    "opt",
    "bloom",
    "falcon",
    "phi",
    "phi3",
    "granite multipliers",
]
OF_THE_ZOO += ["glm4", "stablelm parallel", "gpt_oss"]


@pytest.mark.parametrize("name", OF_THE_ZOO)
@pytest.mark.model
def test_a_family_of_the_zoo_has_the_logits_and_texts_of_transformer_lens(name, tmp_path):
    (case,) = [case for case in CASES if case.name == name]
    folder = case.write(tmp_path / "model")
    model, hf_model = sl.load_model(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    plain, tokens = PlainModel.of(hf_model), torch.randint(4, 500, (2, 9), generator=torch.Generator().manual_seed(0))
    for site in SITES:
        shape = (plain.n_heads, plain.d_head) if site == "z" else (plain.d_model,)
        edit = drawn_edit(shape, site=site)
        with torch.no_grad(), edit.applied(model, strength=1.5):
            expected = logits(model, tokens)
        with torch.no_grad(), sl.hf.applied(hf_model, edit, strength=1.5):
            found = hf_model(tokens).logits
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), site
        prompts = [[5, 9, 13, 17, 8], [7, 21]]
        wanted = sl.generate(model, prompts, edit, strength=1.5, max_new_tokens=4, return_tokens=True)
        with sl.hf.applied(hf_model, edit, strength=1.5):
            written = [generated(hf_model, [prompt], max_new_tokens=4)[0] for prompt in prompts]
        assert [row[: len(one)] for row, one in zip(written, wanted, strict=True)] == wanted, site


ODD = ["falcon", "falcon new architecture", "bloom", "mpt", "opt", "gptj", "gpt_neo", "granite multipliers", "glm4"]
ODD += ["phi", "cohere", "mixtral", "gpt_oss", "stablelm parallel", "exaone4", "biogpt", "openai-gpt"]


@pytest.mark.parametrize("name", ODD)
def test_the_places_of_a_family_are_found_without_knowing_its_names(name):
    # On other tokens than those that they were found by, their activations add up to what the block adds.
    (case,) = [case for case in CASES if case.name == name]
    hf_model = case.huggingface().requires_grad_(False)
    plain, tokens = PlainModel.of(hf_model), torch.randint(4, 500, (1, 7), generator=torch.Generator().manual_seed(0))
    found = {}
    for site in ("attn_out", "mlp_out", "resid_post"):
        if site not in plain.places[0]:
            continue
        seen = {}

        def keep(x, site=site, seen=seen):
            seen[site] = x.clone()

        with plain.hooks([(plain.point(site, 0), keep)]):
            hf_model(tokens)
        found[site] = seen[site].reshape(1, 7, -1)
    entered = hf_model(tokens, output_hidden_states=True).hidden_states[0]
    if name == "openai-gpt":
        # Norms stand behind its sums, so that the block adds no module's output.
        assert set(found) == {"resid_post"}
        return
    total = entered + found["attn_out"] + found["mlp_out"]
    assert (total - found["resid_post"]).abs().max() <= 1e-5 * total.abs().max()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "olmo2"])
@pytest.mark.model
def test_a_plain_model_writes_what_sea_lens_writes(both, family):
    model, hf_model, _ = both(family)
    edit = tiny.fitted(model, rank=4)
    prompts = [[5, 9, 13, 17, 8], [7, 21], [30, 31, 32]]
    expected = sl.generate(model, prompts, edit, **WHERE, max_new_tokens=6, return_tokens=True)
    with sl.hf.applied(hf_model, edit, **WHERE):
        found = generated(hf_model, prompts)
        uncached = generated(hf_model, prompts, use_cache=False)
    assert found == uncached
    for row, wanted in zip(found, expected, strict=True):
        # sl.generate ends at an end token, which the plain one was told to go past.
        assert row[: len(wanted)] == wanted
    assert found != generated(hf_model, prompts)


def at_even_places(ids, prompt):
    """A choice of the user's own, by the tokens of a row and the length of its prompt."""
    return (ids % 2 == 0) & (torch.arange(len(ids)) >= prompt - 2)


@pytest.mark.parametrize("positions", ["prompt", "generated", "last_prompt", "from_last_prompt", at_even_places])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.model
def test_positions_are_those_of_sea_lens_in_left_padded_generation(both, positions, use_cache):
    model, hf_model, _ = both("llama")
    edit = tiny.fitted(model, rank=4)
    prompts = [[5, 9, 13, 17, 8], [7, 21], [30, 31, 32]]
    where = {"strength": 4.0, "positions": positions}
    expected = sl.generate(model, prompts, edit, **where, max_new_tokens=6, return_tokens=True)
    with sl.hf.applied(hf_model, edit, **where):
        found = generated(hf_model, prompts, use_cache=use_cache)
        again = generated(hf_model, prompts, use_cache=use_cache)
    assert found == again
    assert [row[: len(wanted)] for row, wanted in zip(found, expected, strict=True)] == expected


@pytest.mark.model
def test_beams_and_samples_are_those_of_a_model_whose_own_mlp_is_edited(both):
    model, hf_model, _ = both("llama")
    edit = tiny.fitted(model, rank=4)
    prompts = [[5, 9, 13, 17, 8], [7, 21]]
    oracle = AutoModelForCausalLM.from_config(hf_model.config).eval()
    oracle.load_state_dict(hf_model.state_dict())
    for layer, block in enumerate(oracle.model.layers):
        own = block.mlp.forward
        block.mlp.forward = lambda x, own=own, layer=layer: edit(own(x), layer, strength=2.0)
    for options in ({"num_beams": 3}, {"do_sample": True, "temperature": 1.3, "top_k": 0}):
        torch.manual_seed(0)
        expected = generated(oracle, prompts, **options)
        with sl.hf.applied(hf_model, edit, strength=2.0):
            torch.manual_seed(0)
            assert generated(hf_model, prompts, **options) == expected
        torch.manual_seed(0)
        assert generated(hf_model, prompts, **options) != expected


@pytest.mark.model
def test_a_function_of_positions_follows_the_beams(both):
    model, hf_model, _ = both("llama")
    edit = tiny.fitted(model, rank=4)
    prompts = [[5, 9, 13, 17, 8], [7, 21]]
    with sl.hf.applied(hf_model, edit, strength=4.0, positions=at_even_places):
        cached = generated(hf_model, prompts, num_beams=3)
        assert cached == generated(hf_model, prompts, num_beams=3, use_cache=False)
    assert cached != generated(hf_model, prompts, num_beams=3)


@pytest.mark.parametrize("positions", ["prompt", "from_last_prompt", "last_prompt"])
@pytest.mark.model
def test_a_prompt_that_is_read_in_parts_or_drafted_behind_is_known_whole(both, positions):
    model, hf_model, _ = both("llama")
    edit, where = tiny.fitted(model, rank=4), {"strength": 4.0, "positions": positions}
    prompt = [[5, 9, 13, 17, 8, 5, 9]]
    with sl.hf.applied(hf_model, edit, **where):
        expected = generated(hf_model, prompt)
        assert generated(hf_model, prompt, prompt_lookup_num_tokens=2) == expected
        assert generated(hf_model, prompt, prefill_chunk_size=3) == expected
        # Another generation of another length, behind one that somebody else's method began.
        assert generated(hf_model, [prompt[0][:4]]) == generated(hf_model, [prompt[0][:4]], use_cache=False)


@pytest.mark.model
def test_a_mask_that_is_given_by_place_is_heeded(both):
    model, hf_model, _ = both("llama")
    edit = tiny.fitted(model, rank=4)
    ids, mask = torch.tensor([[5, 9, 13, 0, 0], [7, 8, 9, 10, 11]]), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad(), sl.hf.applied(hf_model, edit, strength=3.0, positions="last_prompt"):
        found, expected = hf_model(ids, mask).logits, hf_model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.model
def test_a_pipeline_runs_with_the_edit(both):
    model, hf_model, tokenizer = both("llama")
    edit = tiny.fitted(model, rank=4)
    writes = pipeline("text-generation", model=hf_model, tokenizer=tokenizer)
    options = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    before = writes("w1 w2 w3", **options)[0]["generated_text"]
    with sl.hf.applied(hf_model, edit, strength=2.0):
        after = writes("w1 w2 w3", **options)[0]["generated_text"]
    assert after != before
    ids = tokenizer("w1 w2 w3")["input_ids"]
    wanted = sl.generate(model, [ids], edit, strength=2.0, max_new_tokens=5)
    assert after.split()[: len(wanted[0].split())] == wanted[0].split()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.model
def test_a_model_with_adapters_is_edited_behind_them(both):
    from peft import LoraConfig, get_peft_model

    model, _, _ = both("llama")
    edit, tokens = tiny.fitted(model, rank=4), tiny.tokens()
    fresh = AutoModelForCausalLM.from_pretrained(folder_of(model)).eval()
    # Edited before there were adapters, so that the places were found in other modules.
    sl.hf.install(fresh, tiny.fitted(model, site="z", rank=2)).remove()
    adapted = get_peft_model(
        fresh, LoraConfig(target_modules=["down_proj", "q_proj", "o_proj"], init_lora_weights=False)
    ).eval()
    merged = AutoModelForCausalLM.from_pretrained(folder_of(model)).eval()
    merged = get_peft_model(
        merged, LoraConfig(target_modules=["down_proj", "q_proj", "o_proj"], init_lora_weights=False)
    ).eval()
    merged.load_state_dict(adapted.state_dict())
    merged = merged.merge_and_unload()
    with torch.no_grad(), sl.hf.applied(adapted, edit, **WHERE), sl.hf.applied(merged, edit, **WHERE):
        found, expected = adapted(tokens).logits, merged(tokens).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (found - adapted(tokens).logits).abs().max() > 1e-2
    # Heads are read by a projection that has an adapter of its own.
    heads = tiny.fitted(model, site="z", rank=2)
    with torch.no_grad(), sl.hf.applied(adapted, heads), sl.hf.applied(merged, heads):
        assert (adapted(tokens).logits - merged(tokens).logits).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.model
def test_a_model_that_is_brought_from_the_disk_is_edited_alike(both, tmp_path):
    model, hf_model, _ = both("llama")
    edit, tokens = tiny.fitted(model, rank=4), tiny.tokens()
    folder = folder_of(model)
    device_map = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    device_map |= {"model.layers.2": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    spread = AutoModelForCausalLM.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path).eval()
    with torch.no_grad(), sl.hf.applied(hf_model, edit, **WHERE), sl.hf.applied(spread, edit, **WHERE):
        torch.testing.assert_close(spread(tokens).logits, hf_model(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.model
def test_sixteen_bits_find_the_same_places_and_round(both, dtype):
    model, hf_model, _ = both("gemma2")
    edit, tokens = tiny.fitted(model, rank=4), tiny.tokens()
    half = AutoModelForCausalLM.from_pretrained(folder_of(model), dtype=dtype).eval()
    paths = [{site: at.point for site, at in one.items()} for one in PlainModel.of(half).places]
    assert paths == [{site: at.point for site, at in one.items()} for one in PlainModel.of(hf_model).places]
    with torch.no_grad(), sl.hf.applied(half, edit), sl.hf.applied(hf_model, edit):
        found, expected = half(tokens).logits, hf_model(tokens).logits
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() <= 0.1 * expected.abs().max()


@pytest.mark.model
def test_every_method_of_activations_and_composed_edits_run(both):
    model, hf_model, _ = both("llama")
    demos, tokens = tiny.demonstrations(), tiny.tokens()
    covariance = sl.capture(model, demos, progress=False)
    edits = [
        sl.mean_difference(covariance),
        sl.leace(model, demos) if importlib.util.find_spec("concept_erasure") else None,
        sl.iti(model, demos, heads=3),
        sl.fit(sl.capture(model, demos, feature="tanh", progress=False), rank=4),
        sl.composed(sl.fit(covariance, rank=4), sl.mean_difference(covariance)),
        sl.composed(sl.fit(covariance, rank=4), tiny.fitted(model, site="z", rank=2)),
    ]
    for edit in filter(None, edits):
        with edit.applied(model):
            expected = logits(model, tokens)
        with torch.no_grad(), sl.hf.applied(hf_model, edit):
            found = hf_model(tokens).logits
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), edit


@pytest.mark.model
def test_edits_are_listed_and_taken_out(both):
    model, hf_model, _ = both("gpt2")
    edit, tokens = tiny.fitted(model, rank=4), tiny.tokens()
    before = hf_model(tokens).logits
    handle = sl.hf.install(hf_model, edit, **WHERE)
    assert [one.layers for one in sl.installed(hf_model)] == [(1, 2)]
    with pytest.warns(sl.SeaLensWarning, match="edited already"), sl.hf.applied(hf_model, edit):
        assert len(sl.installed(hf_model)) == 2
    handle.remove()
    assert sl.installed(hf_model) == []
    with pytest.raises(ZeroDivisionError), sl.hf.applied(hf_model, edit):
        raise ZeroDivisionError
    sl.hf.install(hf_model, edit)
    sl.remove_all(hf_model)
    torch.testing.assert_close(hf_model(tokens).logits, before, rtol=0, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hf_model.modules())
    assert "forward" not in vars(hf_model)
    assert "prepare_inputs_for_generation" not in vars(hf_model)


@pytest.mark.model
def test_a_copy_of_an_edited_model_is_unedited(both, tmp_path):
    model, hf_model, _ = both("llama")
    edit, tokens = tiny.fitted(model, rank=4), tiny.tokens()
    before = hf_model(tokens).logits
    with sl.hf.applied(hf_model, edit):
        copied = copy.deepcopy(hf_model)
        torch.save(hf_model, tmp_path / "model.pt")
        hf_model.save_pretrained(tmp_path / "folder")
    stored = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (copied, stored, AutoModelForCausalLM.from_pretrained(tmp_path / "folder")):
        torch.testing.assert_close(other(tokens).logits, before, rtol=0, atol=0)
    with sl.hf.applied(copied, edit):
        assert (copied(tokens).logits - before).abs().max() > 1e-2
        torch.testing.assert_close(hf_model(tokens).logits, before, rtol=0, atol=0)


@pytest.mark.model
def test_what_does_not_fit_is_refused(both, tmp_path):
    model, hf_model, _ = both("llama")
    edit = tiny.fitted(model, rank=4)
    with pytest.raises(sl.UnsupportedModelError, match=r"sl\.hf\.applied.*load_model"):
        sl.effect(hf_model, edit, tiny.contrasts())
    with pytest.raises(sl.UnsupportedModelError, match=r"expected a model of transformers"):
        sl.hf.applied(model, edit)
    with (
        pytest.raises(sl.UnsupportedModelError, match="DoLa acts on the logits"),
        sl.hf.applied(hf_model, sl.dola(model)),
    ):
        pass
    wide = drawn_edit((64,), layers=3)
    with pytest.raises(sl.MismatchError, match="64"), sl.hf.applied(hf_model, wide):
        pass
    # The same sizes, and other weights: both embeddings are named.
    torch.manual_seed(1)
    stranger = AutoModelForCausalLM.from_config(hf_model.config).eval()
    with pytest.raises(sl.MismatchError, match=r"with the embedding .* other weights, the embedding"):
        sl.hf.install(stranger, edit)
    with sl.hf.applied(stranger, edit.for_any_model()):
        pass
    edit.for_any_model().save(tmp_path / "edit.safetensors")
    sl.hf.install(stranger, sl.load_edit(tmp_path / "edit.safetensors")).remove()
    training = AutoModelForCausalLM.from_config(both("gpt2")[1].config).train()
    with pytest.raises(sl.InputError, match=r"model\.eval"):
        sl.hf.install(training, tiny.fitted(both("gpt2")[0], rank=4).for_any_model())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.model
def test_the_embedding_is_told_alike_by_every_library(backend, tmp_path):
    for family in ("llama", "gemma", "gpt2", "gemma2"):
        folder = tiny.save_tiny_model(family, tmp_path / family)
        hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        lens = Lens.of(sl.load_model(folder, backend))
        found, expected = PlainModel.of(hf_model).embedding, lens.embedding
        assert expected is not None
        assert found is not None
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 0.01


def test_nothing_of_transformer_lens_is_imported(tmp_path):
    drawn_edit((32,), layers=3).save(tmp_path / "edit.safetensors")
    folder = tiny.save_tiny_model("llama", tmp_path / "llama")
    script = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "import sea_lens as sl\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r}).eval()\n"
        f"edit = sl.load_edit({str(tmp_path / 'edit.safetensors')!r})\n"
        "with sl.hf.applied(model, edit):\n"
        "    model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=2)\n"
        "print([name for name in sys.modules if name.startswith('transformer_lens')])\n"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"
