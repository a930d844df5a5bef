import sys
from typing import Any

import pytest
import torch
from tiny import N_LAYERS, contrasts, demonstrations, tokens
from transformers import AutoModelForCausalLM

import sea_lens as sl
from sea_lens.measure.scorer import contrast_scorer
from sea_lens.methods.adapters import Adapter
from sea_lens.models.lens import Lens
from sea_lens.models.weight_changes import mlp_out_weight

pytestmark = pytest.mark.model

QUICK: dict[str, Any] = {"rank": 2, "epochs": 1, "learning_rate": 0.02, "progress": False}


def logits(model, ids):
    return Lens.of(model).forward(ids, torch.ones_like(ids)).detach()


def random_adapters(model, layers=(0, 2), rank=3):
    """A LoRA edit that nobody trained."""
    generator = torch.Generator().manual_seed(0)
    adapters = {}
    for layer in layers:
        weight, rows_are_hidden = mlp_out_weight(Lens.of(model), layer)
        d_mlp, d_model = weight.shape if rows_are_hidden else weight.shape[::-1]
        adapters[layer] = Adapter(
            torch.randn(rank, d_mlp, generator=generator) / 9, torch.randn(d_model, rank, generator=generator) / 9
        )
    return sl.LoRA(adapters, (), {"model": {"n_layers": N_LAYERS}})


def by_hugging_face(model, edit, ids, strength=1.0):
    """Logits of the Hugging Face model with the adapters merged into its weights by hand."""
    source = Lens.of(model).source
    assert source is not None
    plain = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager")
    modules = [m for n, m in plain.named_modules() if n.endswith(("down_proj", "mlp.c_proj", "dense_4h_to_h"))]
    for layer, adapter in edit.adapters.items():
        change = strength * adapter.up @ adapter.down
        weight = modules[layer].weight
        weight.data += change.T if type(modules[layer]).__name__ == "Conv1D" else change
    return plain(ids).logits.detach()


def test_the_model_is_the_one_with_the_adapters_merged(any_model):
    edit, ids = random_adapters(any_model), tokens()
    before = logits(any_model, ids)
    for strength in (1.0, -0.5):
        with edit.applied(any_model, strength=strength):
            torch.testing.assert_close(
                logits(any_model, ids), by_hugging_face(any_model, edit, ids, strength), rtol=1e-4, atol=1e-4
            )
    assert torch.equal(logits(any_model, ids), before)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_teaches_the_positive_completions(family, load_tiny, backend):
    model = load_tiny(family, backend)
    edit = sl.lora(model, demonstrations(), rank=4, epochs=30, learning_rate=0.02, progress=False)
    assert edit.losses[-1] < 0.7 * edit.losses[0]
    taught = sl.Contrasts(
        sl.Contrast(d.neutral, d.positive[len(d.neutral) :], d.negative[len(d.neutral) :]) for d in demonstrations()
    )
    effect = sl.effect(model, edit, taught)
    assert effect.interval.low > 1
    # What peft makes of it is what is put into the model.
    ids = tokens()
    with edit.applied(model):
        torch.testing.assert_close(logits(model, ids), by_hugging_face(model, edit, ids), rtol=1e-3, atol=1e-3)


def test_the_first_loss_is_that_of_the_model_itself(model):
    # One step over all demonstrations: nothing has been learned when its loss is measured.
    edit = sl.lora(model, demonstrations(), epochs=1, batch_size=12, progress=False)
    with edit.applied(model, strength=0):
        told = sl.Contrasts(
            sl.Contrast(d.neutral, d.positive[len(d.neutral) :], d.negative[len(d.neutral) :]) for d in demonstrations()
        )
        scorer = contrast_scorer(model, told)
    wanted = -scorer.log_probs()[::2].sum() / scorer.token_counts[::2].sum()
    assert edit.losses[0] == pytest.approx(wanted.item(), rel=1e-4)


def test_the_same_seed_gives_the_same_adapters_and_leaves_other_randomness_alone(model):
    state = torch.random.get_rng_state()
    first, second = (sl.lora(model, demonstrations(), **QUICK) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    other = sl.lora(model, demonstrations(), seed=1, **QUICK)
    for layer in range(N_LAYERS):
        assert torch.equal(first.adapters[layer].product, second.adapters[layer].product)
        assert not torch.equal(first.adapters[layer].product, other.adapters[layer].product)
    assert sl.lora(model, demonstrations(), layers="last-1", **QUICK).layers == (2,)


@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
def test_handles_may_be_removed_out_of_order_and_twice(any_model):
    ids, lens = tokens(), Lens.of(any_model)
    before = logits(any_model, ids)
    weights = [mlp_out_weight(lens, layer)[0].data_ptr() for layer in range(N_LAYERS)]
    one, two = random_adapters(any_model), random_adapters(any_model, (1, 2), 1)
    with two.applied(any_model):
        only_two = logits(any_model, ids)
    first, second = one.install(any_model), two.install(any_model)
    first.remove()
    first.remove()
    assert torch.equal(logits(any_model, ids), only_two)
    second.remove()
    assert torch.equal(logits(any_model, ids), before)
    assert [mlp_out_weight(lens, layer)[0].data_ptr() for layer in range(N_LAYERS)] == weights

    def fail():
        with one.applied(any_model):
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert torch.equal(logits(any_model, ids), before)


def test_layers_have_their_own_strengths_and_contributions(model):
    edit, ids = random_adapters(model), tokens()
    with edit.applied(model, strength={0: 0.0, 2: 0.7}):
        found = logits(model, ids)
    with edit.applied(model, layers=[2], strength=torch.tensor(0.7)):
        assert torch.equal(logits(model, ids), found)
    effect = sl.effect(model, edit, contrasts())
    for method in ("shapley", "leave_one_out", "only_one"):
        result = sl.layer_contributions(model, edit, contrasts(), method)
        assert result.effect == pytest.approx(effect.effect, abs=1e-5)
    for analysis in (sl.layer_contributions, sl.position_contributions, sl.head_contributions):
        with pytest.raises(sl.InputError, match="needs an edit of activations, got LoRA, which acts on the weights"):
            analysis(model, edit, contrasts())


@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_their_dtype(dtype, load_tiny, backend):
    model = load_tiny("llama", backend, dtype)
    edit, ids = random_adapters(model), tokens()
    before = logits(model, ids)
    with edit.applied(model):
        changed = logits(model, ids)
    assert changed.dtype == dtype
    assert not torch.equal(changed, before)
    assert torch.equal(logits(model, ids), before)


@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
def test_it_is_saved_and_read_again(model, tmp_path):
    edit = sl.lora(model, demonstrations(), **QUICK)
    edit.save(tmp_path / "lora.safetensors")
    found = sl.load_edit(tmp_path / "lora.safetensors")
    assert isinstance(found, sl.LoRA)
    assert found.provenance == edit.provenance
    assert found.losses == edit.losses
    with edit.applied(model):
        wanted = logits(model, tokens())
    with found.applied(model):
        assert torch.equal(logits(model, tokens()), wanted)
    with pytest.raises(sl.FileError, match="expected a sea_lens spectral edit"):
        sl.SpectralEdit.load(tmp_path / "lora.safetensors")
    sl.capture(model, demonstrations(), progress=False).save(tmp_path / "covariance.safetensors")
    with pytest.raises(sl.FileError, match="is a sea_lens cross-covariance: expected a sea_lens spectral edit or"):
        sl.load_edit(tmp_path / "covariance.safetensors")


def test_it_refuses_what_it_cannot_do(model, load_tiny, backend, monkeypatch):
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"rank": 0}, "rank 0: expected at least 1"),
        ({"epochs": 0}, "epochs 0: expected at least 1"),
        ({"learning_rate": 0}, "learning_rate 0 is not above 0"),
        ({"layers": [7]}, r"unknown layers \[7\]"),
    ]
    for options, message in wrong:
        with pytest.raises(sl.InputError, match=message):
            sl.lora(model, demonstrations(), **options)
    edit = random_adapters(model)
    with pytest.raises(sl.InputError, match="expected one strength for each layer"):
        edit.install(model, strength=torch.ones(3))
    with pytest.raises(sl.MismatchError, match=r"projections of shape \(48, 32\), .* has \(128, 32\)"):
        edit.install(load_tiny("gpt2", backend))
    monkeypatch.setattr(Lens.of(model), "source", None)
    with pytest.raises(sl.UnsupportedModelError, match="expected one that `load_model` loaded"):
        sl.lora(model, demonstrations())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(sl.MissingPackageError, match=r"sea-lens\[lora\]"):
        sl.lora(model, demonstrations())
