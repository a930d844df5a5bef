"""Edits written into weights (docs/method.md 12.4): a model of plain transformers that does what the edit does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralForCausalLM

import sea_lens as sl
from sea_lens.models.lens import Lens

pytestmark = pytest.mark.model
# Weights that no family has more of than these: transposed, with and without biases, parallel, norms in front.
FAMILIES = ["llama", "mistral", "gemma", "qwen2", "qwen3", "gpt2", "pythia"]


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    """loaded(family) is a TransformerLens model and its folder."""
    made = {}

    def load(family: str):
        if family not in made:
            folder = tiny.save_tiny_model(family, tmp_path_factory.mktemp("folded") / family)
            made[family] = sl.load_model(folder), folder
        return made[family]

    return load


def edited_logits(model, edit, tokens, **where):
    """Logits of the TransformerLens model under the edit."""
    with torch.no_grad(), edit.applied(model, **where):
        return model(tokens, return_type="logits")


@pytest.mark.parametrize("site", ["mlp_out", "attn_out", "z"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_without_the_norm_is_folded_exactly(loaded, family, site):
    model, _ = loaded(family)
    edit, tokens = tiny.fitted(model, site=site, rank=4), tiny.tokens()
    wheres: list[dict[str, Any]] = [{}, {"layers": "last-2", "strength": 1.5}, {"strength": {0: 0.5, 1: -1.0, 2: 0.0}}]
    for where in wheres:
        folded = edit.fold(model, combine="average", **where)
        expected = edited_logits(model, edit, tokens, combine="average", **where)
        with torch.no_grad():
            found = folded(tokens).logits
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), where
        assert folded.sea_lens_fold.is_exact
        assert folded.sea_lens_fold.deviation < 1e-5
    folded, where = edit.fold(model, combine="average", layers=[1]), {"layers": [1]}
    # What was folded is what the report holds as an edit.
    (effect, same) = (
        sl.effect(model, one, tiny.contrasts(), **how).effect
        for one, how in ((edit, {"combine": "average", **where}), (folded.sea_lens_fold.edit, {}))
    )
    assert effect == pytest.approx(same, abs=1e-5)


def test_other_methods_that_are_affine_are_folded_with_their_offset(loaded):
    # GPT-2's projections have biases; Llama's get them by its configuration's own option.
    for family in ("gpt2", "llama"):
        model, _ = loaded(family)
        covariance = sl.capture(model, tiny.demonstrations(), progress=False)
        centred = tiny.fitted(model, rank=4, centre=True)
        heads = tiny.fitted(model, site="z", rank=2, centre=True)
        difference = sl.mean_difference(covariance).with_defaults(positions="all")
        ablation = sl.directional_ablation(covariance)
        edits = [(centred, "average"), (heads, "average"), (difference, None), (ablation, None)]
        for edit, combine in edits:
            folded = edit.fold(model, combine=combine)
            expected = edited_logits(model, edit, tiny.tokens(), combine=combine)
            with torch.no_grad():
                found = folded(tiny.tokens()).logits
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), (family, edit)


def test_the_scale_of_an_edit_that_keeps_norms_is_the_best_one(loaded):
    model, folder = loaded("llama")
    edit, demos = tiny.fitted(model, rank=4), tiny.demonstrations(6)
    folded = edit.fold(model, layers=[1], demonstrations=demos)
    found = folded.sea_lens_fold
    assert not found.is_exact
    # Of the one edited layer the least-squares scale is known from the activations themselves.
    hf_model = AutoModelForCausalLM.from_pretrained(folder).eval()
    seen = []
    handle = hf_model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    with torch.no_grad():
        for one in demos:
            for text in (one.positive, one.negative):
                hf_model(model.to_tokens(text, prepend_bos=True))
    handle.remove()
    x = torch.cat(seen).double()
    keep, drop = edit.projections(1)
    y = x @ (keep + drop).T
    wanted = y * (x.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True))
    assert found.scales[1] == pytest.approx(float((wanted * y).sum() / (y * y).sum()), rel=1e-5)
    # The divergence is that of the two models' own predictions, and nearer than the unedited model's.
    x = {"unedited": AutoModelForCausalLM.from_pretrained(folder).eval(), "folded": folded}
    rows = [model.to_tokens(text, prepend_bos=True) for one in demos for text in (one.positive, one.negative)]
    apart = {}
    for name, one in x.items():
        kl = []
        for row in rows:
            with torch.no_grad(), sl.hf.applied(x["unedited"], edit, layers=[1]):
                p = x["unedited"](row).logits[0].double().log_softmax(-1)
            with torch.no_grad():
                q = one(row).logits[0].double().log_softmax(-1)
            kl.append((p.exp() * (p - q)).sum(-1))
        apart[name] = torch.cat(kl).mean().item()
    assert found.kl == pytest.approx(apart["folded"], rel=1e-4)
    assert apart["folded"] < apart["unedited"]


SCRIPT = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
found = []
for folder, rows in json.load(open(sys.argv[1])):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    AutoTokenizer.from_pretrained(folder)
    for ids in rows:
        given = torch.tensor([ids])
        out = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=16, do_sample=False
        )
        found.append(out[0, len(ids):].tolist())
assert not any(one.startswith(("sea_lens", "transformer_lens")) for one in sys.modules)
print(json.dumps(found))
"""


def test_a_folded_model_runs_with_transformers_alone_and_its_text_is_the_edited_models(shared, tmp_path):
    bed = sl.testbed.load()
    cases = [(bed.model, list(bed.demonstrations)[:200], ["Q: what is the river of Delkeld ? A:"])]
    if (stories := shared / "models" / "stories260K").is_dir():
        cases.append((sl.load_model(stories), _stories(), ["Once upon a time", "The little dog"]))
    asked, wanted = [], []
    for place, (model, demos, prompts) in enumerate(cases):
        folder = tmp_path / str(place)
        edit = sl.fit(sl.capture(model, demos, progress=False), rank=4)
        # In several files, as large models are.
        edit.fold(model, combine="average", strength=0.5).save_pretrained(folder, max_shard_size="300KB")
        Lens.of(model).tokenizer.save_pretrained(folder)
        assert len(list(folder.glob("*.safetensors"))) > 1
        asked.append((str(folder), [model.to_tokens(prompt, prepend_bos=True)[0].tolist() for prompt in prompts]))
        options: dict[str, Any] = {"combine": "average", "strength": 0.5, "max_new_tokens": 16}
        wanted += sl.generate(model, prompts, edit, **options, return_tokens=True)
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    # Away from this folder, so that nothing of it can be imported.
    command = [sys.executable, "-c", SCRIPT, "asked.json"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    found = json.loads(printed.splitlines()[-1])
    assert [row[: len(one)] for row, one in zip(found, wanted, strict=True)] == wanted


def _stories() -> list[sl.Demonstration]:
    texts = ["Once upon a time there was", "The dog ran", "Tom had a ball", "It was sunny", "She saw", "He played"]
    return [sl.Demonstration(text, f"{text} and was happy", f"{text} and was sad") for text in texts]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_sixteen_bits_are_rounded_once(loaded, dtype):
    model, folder = loaded("llama")
    edit = tiny.fitted(model, rank=4)
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    folded = edit.fold(half, combine="average")
    assert folded.dtype == dtype
    weight, own = folded.model.layers[1].mlp.down_proj.weight, half.model.layers[1].mlp.down_proj.weight
    keep, drop = edit.projections(1)
    assert torch.equal(weight, ((keep + drop) / 2 @ own.double()).to(dtype))
    assert folded.sea_lens_fold.deviation < {torch.bfloat16: 1e-1, torch.float16: 2e-2}[dtype]


def test_the_given_model_is_left_alone_unless_it_is_to_be_changed(loaded):
    model, folder = loaded("gpt2")
    edit, tokens = tiny.fitted(model, rank=4), tiny.tokens()
    hf_model = AutoModelForCausalLM.from_pretrained(folder).eval()
    before = hf_model(tokens).logits
    folded = edit.fold(hf_model, combine="average")
    torch.testing.assert_close(hf_model(tokens).logits, before, rtol=0, atol=0)
    assert edit.fold(hf_model, combine="average", in_place=True) is hf_model
    torch.testing.assert_close(hf_model(tokens).logits, folded(tokens).logits)
    # A tied unembedding is no projection, and stays.
    assert folded.lm_head.weight is folded.transformer.wte.weight


def test_what_no_weights_can_hold_is_refused_by_name(loaded, tmp_path):
    model, _ = loaded("llama")
    edit = tiny.fitted(model, rank=4)
    with pytest.raises(sl.InputError, match=r"combine 'norm' keeps the length.*combine='average'.*demonstrations"):
        edit.fold(model)
    with pytest.raises(sl.InputError, match="positions='all'"):
        edit.with_defaults(positions="prompt").fold(model, combine="average")
    with pytest.raises(sl.InputError, match="got a tensor"):
        edit.fold(model, combine="average", strength=torch.ones(3))
    with pytest.raises(sl.UnsupportedModelError, match="it is a sum"):
        tiny.fitted(model, site="resid_post", rank=4).fold(model, combine="average")
    with pytest.raises(sl.UnsupportedModelError, match="no affine map but for lengths"):
        tiny.fitted(model, feature="tanh", rank=4).fold(model, demonstrations=tiny.demonstrations(3))
    behind, _ = loaded("gemma2")
    with pytest.raises(sl.UnsupportedModelError, match=r"post_feedforward_layernorm .* behind a norm"):
        tiny.fitted(behind, rank=4).fold(behind, combine="average")
    gemma, _ = loaded("gemma")
    with pytest.raises(sl.UnsupportedModelError, match="no option that gives them one"):
        tiny.fitted(gemma, rank=4, centre=True).fold(gemma, combine="average")
    with pytest.raises(sl.InputError, match="stands in the model already"), edit.applied(model):
        edit.fold(model, combine="average")
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    sizes["num_attention_heads"] = 4
    experts = MixtralForCausalLM(MixtralConfig(vocab_size=64, **sizes, num_key_value_heads=2, num_local_experts=2))
    with pytest.raises(sl.UnsupportedModelError, match="mixture of experts"):
        edit.for_any_model().fold(experts.eval(), combine="average")
    torch.manual_seed(5)
    stranger = AutoModelForCausalLM.from_config(_config(Path(loaded("llama")[1]))).eval()
    with pytest.raises(sl.MismatchError, match="with the embedding"):
        edit.fold(stranger, combine="average")


def _config(folder: Path):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_model_with_adapters_is_refused_before_anything_is_written(loaded):
    peft = pytest.importorskip("peft")
    model, folder = loaded("llama")
    hf_model = AutoModelForCausalLM.from_pretrained(folder).eval()
    config = peft.LoraConfig(target_modules=["down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(hf_model, config).eval()
    edit = tiny.fitted(model, rank=4)
    before = adapted(tiny.tokens()).logits
    for given in (adapted, adapted.get_base_model()):
        with pytest.raises(sl.UnsupportedModelError, match="merge_and_unload"):
            edit.fold(given, combine="average", in_place=True)
    torch.testing.assert_close(adapted(tiny.tokens()).logits, before, rtol=0, atol=0)
    merged = adapted.merge_and_unload()
    assert edit.fold(merged, combine="average").sea_lens_fold.is_exact


def test_a_fold_in_place_that_fails_leaves_the_model_as_it_was(loaded, monkeypatch):
    model, folder = loaded("llama")
    edit, tokens = tiny.fitted(model, rank=4, centre=True), tiny.tokens()
    hf_model = AutoModelForCausalLM.from_pretrained(folder).eval()
    before, names = hf_model(tokens).logits, set(hf_model.state_dict())
    monkeypatch.setattr("sea_lens.edits.folding._LIMITS", {torch.float32: 0.0})
    with pytest.raises(sl.UnsupportedModelError, match="other logits"):
        edit.fold(hf_model, combine="average", in_place=True)
    torch.testing.assert_close(hf_model(tokens).logits, before, rtol=0, atol=0)
    assert set(hf_model.state_dict()) == names
    assert hf_model.config.mlp_bias is False
    monkeypatch.undo()
    # And one that does not fail changes this very model, biases included.
    assert edit.fold(hf_model, combine="average", in_place=True) is hf_model
    assert hf_model.config.mlp_bias is True
    assert hf_model.model.layers[0].mlp.gate_proj.bias.abs().max() == 0


def test_rotations_stay_in_float32_where_a_model_gets_biases(loaded):
    model, folder = loaded("llama")
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    folded = tiny.fitted(model, rank=4, centre=True).fold(half, combine="average")
    assert folded.model.rotary_emb.inv_freq.dtype == half.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_matrix_that_two_layers_share_is_refused(loaded):
    model, folder = loaded("llama")
    hf_model = AutoModelForCausalLM.from_pretrained(folder).eval()
    hf_model.model.layers[2].mlp.down_proj.weight = hf_model.model.layers[0].mlp.down_proj.weight
    with pytest.raises(sl.UnsupportedModelError, match="its matrix is also that of"):
        tiny.fitted(model, rank=4).fold(hf_model, combine="average")
