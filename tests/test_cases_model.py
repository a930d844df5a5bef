"""The model in memory is the model in the folder, or it is refused."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import BACKENDS, N_LAYERS, contrasts, demonstrations, fitted, save_tiny_model, sentence
from transformers import AutoModelForCausalLM

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.models.load import hooked_available

sys.path.insert(0, str(Path(__file__).parents[1] / "analyses"))
from zoo_models import FAMILIES, Case, tokenizer

pytestmark = [
    pytest.mark.model,
    # Some bridges of some versions do not read with their own cache as they read whole texts, and say so.
    pytest.mark.filterwarnings("ignore:.*does not read with its own cache:sea_lens.SeaLensWarning"),
]
hooked = pytest.mark.skipif(not hooked_available(), reason="needs HookedTransformer")


def case(family: str, variant: str = "", **more: Any) -> Case:
    sizes, variants = FAMILIES[family]
    return Case(family, variant, {**sizes, **variants[variant], **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(family, variant) is the folder of a model of the zoo, written once."""
    written: dict[str, Path] = {}

    def write(family: str, variant: str = "", **more: Any) -> str:
        made = case(family, variant, **more)
        key = f"{made.name} {more}"
        if key not in written:
            written[key] = made.write(tmp_path_factory.mktemp("zoo") / family)
        return str(written[key])

    return write


def text(length: int = 40, rows: int = 2) -> torch.Tensor:
    return torch.randint(4, 500, (rows, length), generator=torch.Generator().manual_seed(7))


def huggingface(path: str, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the plain model."""
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")(ids).logits.log_softmax(-1)


def assert_exact(model: Any, path: str, ids: torch.Tensor, atol: float = 1e-4) -> None:
    with torch.no_grad():
        found = Lens.of(model).forward(ids, torch.ones_like(ids)).log_softmax(-1).cpu()
    torch.testing.assert_close(found, huggingface(path, ids), rtol=0, atol=atol)


# Rows of the table: what HookedTransformer's configuration drops without a word.
DROPPED = [
    ("llama", "rope linear"),
    ("llama", "rope yarn"),
    ("llama", "rope longrope"),
    ("llama", "mlp_bias"),
    ("llama", "attention_bias"),
    ("mistral", "rope yarn"),
    ("qwen2", "window 8"),
    ("qwen2", "window 100"),
    ("qwen2", "rope theta 12345.5"),
    ("qwen3", "attention_bias"),
    ("qwen3", "window 8"),
    ("bloom", "residual behind norm"),
]


@hooked
@pytest.mark.parametrize(("family", "variant"), DROPPED)
def test_hooked_refuses_a_model_that_it_makes_another_of_and_auto_goes_on_to_the_bridge(family, variant, folder):
    path = folder(family, variant)
    with pytest.raises(sl.UnsupportedModelError, match=r"as hooked.*(\d\.\de[-+]\d\d|windows).*expected"):
        sl.load_model(path, "hooked")
    model = sl.load_model(path)
    assert Lens.of(model).backend == "bridge"
    assert sl.check_model(model).ok
    assert_exact(model, path, text(Lens.of(model).n_ctx if variant == "rope longrope" else 120))


@pytest.mark.parametrize(("family", "variant"), DROPPED)
def test_the_bridge_is_the_model_of_the_folder(family, variant, folder):
    path = folder(family, variant)
    assert_exact(sl.load_model(path, "bridge"), path, text(30))


def test_gpt2_without_attention_scale_is_refused_by_the_bridge_with_the_deviation(folder):
    path = folder("gpt2", "no attention scale")
    with pytest.raises(sl.UnsupportedModelError, match=r"bridge.*logits against the original.*[1-9]\.\de-01"):
        sl.load_model(path, "bridge")
    if hooked_available():
        assert_exact(sl.load_model(path), path, text())


@pytest.mark.parametrize("family", ["openai-gpt"])
def test_a_bridge_that_computes_another_model_is_refused(family, folder):
    with pytest.raises(sl.UnsupportedModelError, match="logits against the original"):
        sl.load_model(folder(family), "bridge")


@pytest.mark.parametrize("family", ["mistral", "qwen3", "mpt", "llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("context", [128, 4000])
def test_the_context_is_that_of_the_configuration(family, context, folder):
    name = {"mpt": "max_seq_len", "gpt2": "n_positions"}.get(family, "max_position_embeddings")
    path = folder(family, **{name: context})
    for backend in BACKENDS:
        if backend == "hooked" and family == "mpt":
            continue
        model = sl.load_model(path, backend)
        assert Lens.of(model).n_ctx == context
        with pytest.raises(sl.DemonstrationError, match=f"context of {context}"):
            sl.generate(model, "a", max_new_tokens=context)


@hooked
@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_texts_beyond_2048_tokens_are_read_as_hugging_face_reads_them(family, folder):
    path = folder(family, max_position_embeddings=4000)
    # Angles of thousands of radians round.
    assert_exact(sl.load_model(path, "hooked"), path, text(2100, 1), atol=2e-3)


def test_texts_of_longrope_end_where_its_frequencies_change(folder):
    """Beyond that length, earlier logits of Hugging Face's model itself depend on later tokens."""
    path, ids = folder("llama", "rope longrope"), text(40, 1)
    assert not torch.allclose(huggingface(path, ids)[:, :20], huggingface(path, ids[:, :20]), atol=1e-2)
    assert Lens.of(sl.load_model(path, "bridge")).n_ctx == 32


@pytest.mark.parametrize(
    ("family", "variant"),
    [("opt", "norm behind"), ("gpt_neox", "no attention bias"), ("falcon", "new architecture"), ("helium", "")],
)
def test_a_model_that_cannot_be_run_is_refused_at_load(family, variant, folder):
    for backend in [*BACKENDS, "auto"]:
        with pytest.raises(sl.UnsupportedModelError):
            sl.load_model(folder(family, variant), backend)


def test_bert_is_no_causal_model(folder):
    with pytest.raises(sl.UnsupportedModelError, match=r"later tokens move earlier logits by: [1-9]\.\de\+00.*causal"):
        sl.load_model(folder("bert"), "bridge")
    path = folder("bert", "decoder")
    assert_exact(sl.load_model(path, "bridge"), path, text())


def test_a_masked_model_that_a_user_brings_is_refused_when_it_is_used(folder):
    model = sl.load_model(folder("bert"), "bridge", check=False)
    Lens.of(model).trusted = False
    for _ in range(2):
        with pytest.raises(sl.UnsupportedModelError, match="not causal"):
            sl.generate(model, "a")
    report = sl.check_model(model)
    assert not report.ok


@hooked
@pytest.mark.filterwarnings("ignore:HookedEncoder is deprecated:DeprecationWarning")
def test_an_encoder_is_refused():
    from transformer_lens import HookedEncoder
    from transformer_lens.config import HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=8, d_head=4, n_heads=2, d_mlp=8, d_vocab=16, act_fn="gelu", normalization_type="LN"
    )
    with pytest.raises(sl.UnsupportedModelError, match="HookedEncoder is not causal"):
        sl.check_model(HookedEncoder(config))


def test_a_bridge_that_a_user_makes_is_compared_with_the_model_inside_it(folder):
    from transformer_lens.model_bridge import TransformerBridge

    for variant in ("", "no attention scale"):
        path = folder("gpt2", variant)
        hf_model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
        model = TransformerBridge.boot_transformers(path, hf_model=hf_model, tokenizer=_tokenizer(path), device="cpu")
        if not variant:
            before = Lens.of(model).forward(text(), torch.ones_like(text()))
            assert sl.check_model(model).ok
            assert sl.check_model(model).deviation is not None
            assert torch.equal(Lens.of(model).forward(text(), torch.ones_like(text())), before)
        else:
            with pytest.raises(sl.UnsupportedModelError, match="logits against the original"):
                sl.generate(model, "a")


def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def test_the_check_is_made_once_for_a_model(load_tiny, backend):
    model = copy.deepcopy(load_tiny("llama", backend))
    lens = Lens.of(model)
    lens.checked = None
    sl.generate(model, "w1", max_new_tokens=1)
    kept, passes = lens.checked, []
    inside = getattr(model, "original_model", model)
    inside.register_forward_pre_hook(lambda *_: passes.append(1))
    assert sl.check_model(model).deviation == kept.deviation
    fitted(model)
    assert lens.checked is kept
    # Those of the readings alone.
    reading = len(passes)
    fitted(model)
    assert len(passes) == 2 * reading


def test_a_first_check_reads_no_more_tokens_than_five_passes_over_the_probe(load_tiny, backend):
    model = copy.deepcopy(load_tiny("llama", backend))
    lens = Lens.of(model)
    lens.checked = None
    lens.cached_readings.clear()
    embedding, read = model.original_model.model.embed_tokens if backend == "bridge" else model.embed, []
    embedding.register_forward_pre_hook(lambda _, given: read.append(given[0].numel()))
    assert sl.check_model(model).ok
    # The probe, the hooks, three steps with a cache, and two that tell the unembedding apart from its pass. What a
    # bridge is compared with runs the module inside.
    assert len(read) == 7
    assert sum(read) + (backend == "bridge") * read[0] <= 5 * 64


# Processing of the weights.


@pytest.fixture(scope="module")
def processed(folder):
    """A GPT-2 whose weights TransformerLens folded and centred, by backend."""

    def make(backend: str) -> Any:
        model = sl.load_model(folder("gpt2"), backend)
        if backend == "bridge":
            model.enable_compatibility_mode(disable_warnings=True)
        else:
            model.process_weights_()
        return model

    return make


WORDS = [f"text {letter}" for letter in "abcdefghijkl"]


def edit_of(model: Any) -> sl.SpectralEdit:
    demos = sl.Demonstrations([sl.Demonstration(word, f"{word} yes {word}", f"{word} no") for word in WORDS])
    return sl.fit(sl.capture(model, demos, progress=False), rank=3)


def asked() -> sl.Contrasts:
    return sl.Contrasts([sl.Contrast(f"other {word}", " yes", " no") for word in WORDS])


def test_an_edit_of_raw_weights_is_refused_in_a_processed_model_and_can_be_forced(folder, processed, backend, tmp_path):
    raw, other = sl.load_model(folder("gpt2"), backend), processed(backend)
    edit = edit_of(raw)
    assert edit.provenance["model"]["processing"] == []
    for use in (
        lambda: edit.install(other),
        lambda: edit.applied(other).__enter__(),
        lambda: sl.effect(other, edit, asked()),
        lambda: edit.fwd_hooks(other),
    ):
        with pytest.raises(sl.MismatchError, match=r"as trained.*writing weights centred.*for_any_processing"):
            use()
    forced = edit.for_any_processing()
    assert sl.effect(other, forced, asked()).effect != sl.effect(raw, edit, asked()).effect
    forced.save(tmp_path / "forced.safetensors")
    sl.effect(other, sl.SpectralEdit.load(tmp_path / "forced.safetensors"), asked())
    assert edit.provenance["model"]["processing"] == []


def test_an_edit_of_a_processed_model_is_for_that_and_is_refused_in_a_raw_one(folder, processed, backend):
    other = processed(backend)
    edit = edit_of(other)
    assert {"layer norms folded", "writing weights centred", "unembedding centred"} <= {
        *edit.provenance["model"]["processing"]
    }
    sl.effect(other, edit, asked())
    with pytest.raises(sl.MismatchError, match=r"layer norms folded.*has weights as trained"):
        sl.effect(sl.load_model(folder("gpt2"), backend), edit, asked())


def test_a_processed_model_is_still_compared_with_its_original(processed):
    report = sl.check_model(processed("bridge"))
    assert report.ok
    facts = {fact.name: fact.measured for fact in report.facts}
    assert "layer norms folded" in facts["processing of the weights"]


def test_edits_without_the_record_go_into_any_model(processed, folder, backend):
    edit = edit_of(sl.load_model(folder("gpt2"), backend))
    del edit.provenance["model"]["processing"]
    with edit.applied(processed(backend)):
        pass


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2", "gpt2", "pythia"])
def test_weights_as_trained_are_told_from_processed_ones(family, load_tiny, backend):
    assert Lens.of(load_tiny(family, backend)).record["processing"] == []


# Passes that are random, and tensors that take no gradient.


@pytest.mark.parametrize(("family", "options"), [("gpt2", {}), ("llama", {"attention_dropout": 0.3})])
def test_every_measure_refuses_a_model_that_drops_at_random(family, options, folder):
    model = sl.load_model(folder(family, **options), "bridge")
    edit = edit_of(model)
    model.train()
    demos = sl.Demonstrations([sl.Demonstration("a", "a b", "a c")])
    for use in (
        lambda: sl.effect(model, edit, asked()),
        lambda: edit.install(model),
        lambda: sl.capture(model, demos, progress=False),
        lambda: sl.generate(model, "a"),
        lambda: sl.layer_contributions(model, edit, asked()),
        lambda: sl.head_contributions(model, edit, asked()),
        lambda: sl.direction_contributions(model, edit, asked()),
    ):
        with pytest.raises(sl.InputError, match="drops out units at random"):
            use()
    report = sl.check_model(model)
    assert not report.ok
    model.eval()
    assert sl.check_model(model).ok
    assert sl.effect(model, edit, asked()).effect == sl.effect(model, edit, asked()).effect


def test_a_model_that_is_loaded_in_inference_mode_is_like_any_other(model_folders, backend):
    with torch.inference_mode():
        model = sl.load_model(str(model_folders["llama"]), backend)
    assert not any(parameter.is_inference() for parameter in model.parameters())
    sl.layer_contributions(model, fitted(model), contrasts(), method="path")


def test_parameters_of_inference_mode_are_refused_where_gradients_are_needed(model_folders, backend):
    model = sl.load_model(str(model_folders["llama"]), backend)
    with torch.inference_mode():
        model = copy.deepcopy(model)
    edit = fitted(model)
    assert not sl.check_model(model).ok
    sl.effect(model, edit, contrasts())
    for use in (
        lambda: sl.layer_contributions(model, edit, contrasts(), method="path"),
        lambda: sl.head_contributions(model, edit, contrasts(), method="gradient"),
    ):
        with pytest.raises(sl.UnsupportedModelError, match=r"inference_mode\(\)"):
            use()


# Weights that are not those of the configuration, or no numbers.


def rewritten(folder: Any, change: Any = lambda weights: weights, **config: Any) -> str:
    """The folder of the zoo's Llama with its weights changed, and fields of its configuration."""
    name = folder / "model.safetensors"
    save_file(change(load_file(name)), name, metadata={"format": "pt"})
    described = {**json.loads((folder / "config.json").read_text()), **config}
    (folder / "config.json").write_text(json.dumps(described))
    return str(folder)


@pytest.fixture
def llama(tmp_path):
    """A folder of a test's own."""
    return case("llama").write(tmp_path / "llama")


def test_weights_that_the_folder_lacks_are_not_drawn_at_random(llama, backend):
    path = rewritten(
        llama, lambda weights: {name: one for name, one in weights.items() if "layers.1.mlp.down" not in name}
    )
    with pytest.raises(sl.FileError, match=r"lack model\.layers\.1\.mlp\.down_proj\.weight.*at random"):
        sl.load_model(path, backend)
    report = sl.check_model(sl.load_model(path, backend, check=False))
    assert "weights that the folder lacks" in [fact.name for fact in report.facts if not fact.ok]


def test_a_configuration_of_more_layers_than_there_are_weights_for_is_refused(llama, backend):
    with pytest.raises(sl.FileError, match=r"lack model\.layers\.2.*and \d more"):
        sl.load_model(rewritten(llama, num_hidden_layers=3), backend)


def test_weights_that_are_left_out_are_told(tmp_path, backend):
    path = rewritten(case("llama", "attention_bias").write(tmp_path / "llama"), attention_bias=False)
    with pytest.warns(sl.SeaLensWarning, match=r"leaves out weights.*self_attn\.k_proj\.bias.*and 6 more"):
        model = sl.load_model(path, backend)
    assert "weights that were left out" in [fact.name for fact in sl.check_model(model).facts if not fact.ok]


def test_weights_of_another_shape_are_named(llama, backend):
    with pytest.raises(sl.UnsupportedModelError, match=r"mlp\.down_proj\.weight' has shape \(32, 64\).*\(32, 48\)"):
        sl.load_model(rewritten(llama, intermediate_size=48), backend)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(llama, backend, value):
    def spoiled(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["model.layers.1.mlp.down_proj.weight"][0, 0] = value
        return weights

    path = rewritten(llama, spoiled)
    with pytest.raises(sl.UnsupportedModelError, match=r"NaN or infinite.*weight '.*1\.mlp\..*' holds NaN or infinity"):
        sl.load_model(path, backend)
    report = sl.check_model(sl.load_model(path, backend, check=False))
    assert "logits that are NaN or infinite" in [fact.name for fact in report.facts if not fact.ok]


@pytest.mark.parametrize("content", ["{", "[1]", '{"version": "1.0", "model": {"type": "foo"}}'])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_something_else_is_refused(llama, name, content):
    (llama / name).write_text(content)
    # What is no tokenizer's configuration may still leave one that can be read.
    if (name, content[:2]) != ("tokenizer_config.json", '{"'):
        with pytest.raises(sl.UnsupportedModelError, match="no tokenizer that can be read"):
            sl.load_model(llama)


def test_a_text_with_a_token_beyond_the_embedding_is_refused(llama, backend):
    made = tokenizer()
    made.add_tokens(["<new>"])
    made.save_pretrained(llama)
    model = sl.load_model(llama, backend)
    assert "tokens beyond the embedding" in [fact.name for fact in sl.check_model(model).facts if not fact.ok]
    for use in (
        lambda: sl.generate(model, "a <new> b"),
        lambda: sl.capture(model, sl.Demonstrations([sl.Demonstration("a", "a <new>", "a b")]), progress=False),
    ):
        with pytest.raises(sl.DemonstrationError, match=r"holds '<new>', token 512, .*512 tokens"):
            use()
    assert sl.generate(model, "a b", max_new_tokens=1)


@hooked
@pytest.mark.parametrize("context", [1, 2, 3, 7, 8])
def test_a_model_of_a_few_tokens_of_context_can_be_checked(context):
    report = sl.check_model(toy(n_ctx=context))
    # It has no tokenizer.
    assert [fact.name for fact in report.facts if not fact.ok] == ["tokenizer"]


@hooked
def test_a_model_of_someone_s_own_that_holds_nan_is_told():
    model = toy()
    model.blocks[0].mlp.W_in.data[0, 0] = float("nan")
    report = sl.check_model(model)
    assert "blocks.0.mlp.W_in" in str(report)
    assert "NaN" in next(fact.name for fact in report.facts if not fact.ok)


@hooked
def test_heads_whose_axes_were_turned_are_told():
    model = toy()
    assert Lens.of(model).record["processing"] == []
    model.process_weights_(
        fold_ln=False, center_writing_weights=False, center_unembed=False, refactor_factored_attn_matrices=True
    )
    assert "attention matrices factored anew" in Lens.of(model).record["processing"]


def toy(**more: Any) -> Any:
    """A random HookedTransformer without tokenizer."""
    from transformer_lens import HookedTransformer
    from transformer_lens.config import HookedTransformerConfig

    sizes = {"n_layers": 1, "d_model": 16, "n_ctx": 16, "d_head": 8, "n_heads": 2, "d_mlp": 32, "d_vocab": 24}
    config = HookedTransformerConfig(**{**sizes, "act_fn": "relu", "normalization_type": "LN", "seed": 0, **more})
    return HookedTransformer(config, move_to_device=False)


# The report.


def test_the_report_has_a_row_for_each_check(any_model):
    report = sl.check_model(any_model)
    assert report.ok, str(report)
    frame = report.to_frame()
    assert list(frame.columns) == ["name", "measured", "limit", "ok", "what to do"]
    assert isinstance(frame, pd.DataFrame)
    assert frame["ok"].all()
    for part in ("logits", "later tokens", "cache", "hooks at z", "training mode", "inference", "context", "BOS"):
        assert frame["name"].str.contains(part).any(), part
    assert str(report).count("\n") >= len(frame) - 1


def test_the_outcome_is_in_the_provenance_of_what_is_fitted(model):
    record = fitted(model).provenance["model"]
    assert record["check"]["reference"] == "Hugging Face"
    assert record["check"]["deviation"] < 1e-4
    assert record["check"]["failed"] == []


def test_shards_merge_whatever_rounding_the_check_measured(model):
    demos = sl.Demonstrations([sl.Demonstration(sentence(0, 3), sentence(0, 4), sentence(1, 5))])
    one, other = (sl.capture(model, demos, progress=False) for _ in range(2))
    other.provenance["model"] = {**other.provenance["model"], "check": {"deviation": 1e-5}}
    assert (one + other).n == 2
    other.provenance["model"] = {**other.provenance["model"], "processing": ["unembedding centred"]}
    with pytest.raises(sl.MismatchError, match="model"):
        _ = one + other


def test_a_hook_that_changes_nothing_is_found_and_its_site_is_refused(load_tiny, backend):
    """What stands behind the hook point throws away what the hook returns."""
    model = copy.deepcopy(load_tiny("llama", backend))
    edit, at_stream = fitted(model), fitted(model, site="resid_post")
    lens = Lens.of(model)
    lens.checked = None
    point = lens.points["blocks.1.hook_mlp_out"]
    seen: list[torch.Tensor] = []
    point.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    plain = type(point).__call__

    class Deaf(type(point)):
        def __call__(self, *inputs: Any) -> Any:
            plain(self, *inputs)
            return inputs[0]

    point.__class__ = Deaf
    report = sl.check_model(model)
    wrong = [fact for fact in report.facts if not fact.ok]
    assert [fact.name for fact in wrong] == ["hooks at mlp_out"]
    assert "layers [1]" in wrong[0].measured
    with pytest.raises(sl.UnsupportedModelError, match=r"site 'mlp_out'.*layers \[1\]"):
        edit.install(model)
    at_stream.install(model).remove()


def test_sites_that_a_model_lacks_are_told_and_are_no_fault_and_models_without_a_cache_are_read_whole(folder):
    model = sl.load_model(folder("mamba"), "bridge")
    report = sl.check_model(model)
    measured = {fact.name: fact.measured for fact in report.facts}
    assert report.ok
    assert measured["hooks at z"] == measured["hooks at mlp_out"] == "no hook point in layers [0, 1]"
    with pytest.raises(sl.UnsupportedModelError, match=r"no hook point .*mlp_out"):
        sl.capture(model, demonstrations())


def _attention_only(folder) -> Any:
    if not hooked_available():
        pytest.skip("needs HookedTransformer")
    from transformer_lens import HookedTransformer
    from transformer_lens.config import HookedTransformerConfig

    torch.manual_seed(0)
    config = HookedTransformerConfig(n_layers=2, d_model=16, n_ctx=48, d_head=8, n_heads=2, d_vocab=64, attn_only=True)
    return HookedTransformer(config, tokenizer=_tokenizer(str(folder)))


def test_a_model_of_attention_alone_has_no_mlp_and_that_is_no_fault(model_folders):
    model = _attention_only(model_folders["llama"])
    report = sl.check_model(model)
    assert report.ok
    assert {fact.name: fact.measured for fact in report.facts}["hooks at mlp_out"] == "no hook point in layers [0, 1]"
    with pytest.raises(sl.UnsupportedModelError, match="mlp_out"):
        sl.capture(model, demonstrations())
    edit = fitted(model, site="attn_out")
    found = sl.head_contributions(model, edit, contrasts(), method="direct")
    # Without an MLP, heads and what the edit writes are all there is.
    assert not found.others["mlp"].any()
    assert found.closure_error < 1e-5


def test_a_model_that_went_to_another_dtype_is_measured_anew(load_tiny, backend):
    model = copy.deepcopy(load_tiny("llama", backend))
    model.to(torch.bfloat16)
    before = sl.check_model(model)
    assert before.dtypes == {torch.bfloat16}
    assert sl.check_model(model).facts == before.facts
    list(model.parameters())[-1].data = list(model.parameters())[-1].data.double()
    for call in (lambda: sl.check_model(model), lambda: sl.generate(model, "w1", max_new_tokens=1)):
        with pytest.raises(sl.UnsupportedModelError, match="dtype"):
            call()


def test_tokens_beyond_the_embedding_are_told(tmp_path, backend):
    folder = save_tiny_model("llama", tmp_path / "model")
    tokenizer = _tokenizer(str(folder))
    tokenizer.add_tokens(["extra", "more"])
    tokenizer.save_pretrained(folder)
    report = sl.check_model(sl.load_model(str(folder), backend))
    (fact,) = [fact for fact in report.facts if not fact.ok]
    assert (fact.name, fact.measured) == ("tokens beyond the embedding", 2)


def test_without_a_check_the_model_is_taken_as_it_is(folder):
    path = folder("gpt2", "no attention scale")
    model = sl.load_model(path, "bridge", check=False)
    sl.generate(model, "a", max_new_tokens=2)
    assert not sl.check_model(model).ok


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_right_models_pass_and_wrong_ones_do_not(dtype, folder, load_tiny, backend):
    assert sl.check_model(load_tiny("gemma2", backend, dtype)).ok
    with pytest.raises(sl.UnsupportedModelError):
        sl.load_model(folder("gpt2", "no attention scale"), "bridge", dtype=dtype)


def test_a_model_of_a_users_own_is_measured_without_a_reference(tmp_path):
    if not hooked_available():
        pytest.skip("needs HookedTransformer")
    from transformer_lens import HookedTransformer
    from transformer_lens.config import HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=N_LAYERS, d_model=16, n_ctx=12, d_head=8, n_heads=2, d_vocab=32, act_fn="relu", seed=0
    )
    report = sl.check_model(HookedTransformer(config))
    assert report.deviation is None
    assert [fact.name for fact in report.facts if not fact.ok] == ["tokenizer"]
