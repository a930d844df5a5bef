import math
from typing import Any

import pytest
import torch
from tiny import N_LAYERS, contrasts, fitted, sentence, tokens

import sea_lens as sl
from sea_lens.methods.layer_contrast import jensen_shannon
from sea_lens.models.lens import Lens

pytestmark = pytest.mark.model


def logits(model, ids, mask=None):
    return Lens.of(model).forward(ids, torch.ones_like(ids) if mask is None else mask).detach()


def layer_log_probs(model, ids):
    """Log-probabilities of the model and of its earlier layers, by running the model's own modules."""
    with torch.no_grad():
        final, cache = model.run_with_cache(ids)
        cap = getattr(model.cfg, "output_logits_soft_cap", None)
        early = []
        for layer in range(N_LAYERS - 1):
            read = model.unembed(model.ln_final(cache[f"blocks.{layer}.hook_resid_post"]))
            early.append(cap * torch.tanh(read / cap) if cap and cap > 0 else read)
    return final.double().log_softmax(-1), torch.stack(early).double().log_softmax(-1)


def entropy(p):
    return -torch.special.xlogy(p, p).sum(-1)


def premature(final, early):
    """The layer of largest divergence at each position, by entropies: H((p + q) / 2) − (H(p) + H(q)) / 2."""
    p, q = final.exp(), early.exp()
    return (entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2).argmax(0)


def expected(model, ids, strength, relative_top):
    final, early = layer_log_probs(model, ids)
    chosen = premature(final, early)
    against = torch.where((chosen == 0)[..., None], early[0], early[1])
    kept = final.exp() >= relative_top * final.exp().max(-1, keepdim=True).values
    return torch.where(kept, final - strength * against, -torch.inf)


def detour(model):
    """A hook that makes layer 1 say something of its own at every other position, and one that takes it back."""
    vector = torch.zeros(model.cfg.d_model).index_fill_(0, torch.tensor([1, 5]), 9.0)

    def adding(sign):
        return lambda x: x + sign * vector * (torch.arange(x.shape[1]) % 2)[None, :, None]

    return Lens.of(model).hooks([("blocks.1.hook_mlp_out", adding(1)), ("blocks.2.hook_mlp_out", adding(-1))])


def test_dola_contrasts_with_the_layer_that_differs_most(any_model):
    ids = tokens(3, 12)
    with detour(any_model):
        for relative_top in (0.0, 0.3):
            with sl.dola(any_model, relative_top=relative_top).applied(any_model, strength=0.7):
                found = logits(any_model, ids)
            wanted = expected(any_model, ids, 0.7, relative_top)
            assert torch.equal(found.isneginf(), wanted.isneginf())
            assert wanted.isneginf().any() == (relative_top > 0)
            kept = ~wanted.isneginf()
            torch.testing.assert_close(found.double()[kept], wanted[kept], rtol=1e-4, atol=1e-4)
        # Both layers get their turn.
        assert len(premature(*layer_log_probs(any_model, ids)).unique()) == 2


def test_the_divergence_is_jensen_shannons():
    p, q = torch.randn(2, 5, 9, dtype=torch.float64).log_softmax(-1)
    mixed = (p.exp() + q.exp()) / 2
    torch.testing.assert_close(jensen_shannon(p, q), entropy(mixed) - (entropy(p.exp()) + entropy(q.exp())) / 2)
    torch.testing.assert_close(jensen_shannon(p, q), jensen_shannon(q, p))
    assert jensen_shannon(p, p).abs().max() < 1e-15
    apart = torch.eye(2, dtype=torch.float64).log()
    assert jensen_shannon(apart[0], apart[1]).item() == pytest.approx(math.log(2))


def test_without_strength_and_without_the_context_the_model_is_what_it_was(any_model):
    ids, edit = tokens(2, 9), sl.dola(any_model)
    before = logits(any_model, ids)
    with edit.applied(any_model, strength=0.0):
        assert torch.equal(logits(any_model, ids), before)
    with edit.applied(any_model):
        assert not torch.equal(logits(any_model, ids), before)
    assert torch.equal(logits(any_model, ids), before)

    def fail():
        with edit.applied(any_model):
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert torch.equal(logits(any_model, ids), before)
    assert "forward" not in vars(any_model)


@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
def test_handles_may_be_removed_out_of_order_and_twice(any_model):
    ids = tokens(2, 9)
    before = logits(any_model, ids)
    first, second = sl.dola(any_model, [0], 0), sl.dola(any_model, [1], 0)
    with second.applied(any_model):
        only_second = logits(any_model, ids)
    one, two = first.install(any_model), second.install(any_model)
    one.remove()
    assert torch.equal(logits(any_model, ids), only_second)
    one.remove()
    two.remove()
    assert torch.equal(logits(any_model, ids), before)
    assert "forward" not in vars(any_model)
    two.remove()
    assert torch.equal(logits(any_model, ids), before)


def test_what_others_put_on_the_model_stays(any_model):
    calls = []
    edit = sl.dola(any_model)
    any_model.hook_dict["ln_final.hook_normalized"].add_hook(lambda x, hook: calls.append("hook"))
    handle = any_model.register_forward_hook(lambda *_: calls.append("module"))
    try:
        with edit.applied(any_model):
            calls.clear()
            logits(any_model, tokens())
            # Once each: reading layers out early runs none of the model's modules.
            assert calls == ["hook", "module"]
        calls.clear()
        logits(any_model, tokens())
        assert calls == ["hook", "module"]
    finally:
        handle.remove()
        any_model.hook_dict["ln_final.hook_normalized"].remove_hooks(including_permanent=True)


def test_every_way_of_running_the_model_is_changed_and_no_activation_is(any_model):
    ids = tokens()
    plain_logits, plain = any_model.run_with_cache(ids)
    with sl.dola(any_model).applied(any_model):
        changed = logits(any_model, ids)
        found, cache = any_model.run_with_cache(ids)
        # On a bridge up to rounding: where it keeps a cache it adds in another order.
        exact: dict[str, Any] = {"rtol": 0.0, "atol": 0.0} if Lens.of(any_model).backend == "hooked" else {}
        torch.testing.assert_close(found, changed, **exact)
        torch.testing.assert_close(any_model.run_with_hooks(ids, fwd_hooks=[], return_type="logits"), changed, **exact)
        torch.testing.assert_close(any_model(ids), changed, **exact)
    assert not torch.equal(plain_logits, changed)
    for name in ("blocks.0.hook_resid_post", "ln_final.hook_normalized", "ln_final.hook_scale"):
        assert torch.equal(cache[name], plain[name])


def test_decoding_with_a_cache_is_decoding_without(any_model):
    options = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False, "return_type": "tokens"}
    ids = tokens(1, 6)
    plain = any_model.generate(ids, verbose=False, **options)
    with sl.dola(any_model).applied(any_model, strength=1.5):
        generated = any_model.generate(ids, verbose=False, **options)
        wanted = ids
        for _ in range(5):
            wanted = torch.cat([wanted, logits(any_model, wanted)[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated, wanted)
    assert not torch.equal(generated, plain)


def test_logits_of_cached_steps_are_those_of_one_pass(any_model):
    ids = tokens(2, 8)
    with sl.dola(any_model, relative_top=0).applied(any_model), torch.no_grad():
        whole = logits(any_model, ids)
        if Lens.of(any_model).backend == "hooked":
            from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

            past = TransformerLensKeyValueCache.init_cache(any_model.cfg, "cpu", 2)
            steps = [any_model(part, past_kv_cache=past) for part in (ids[:, :5], ids[:, 5:])]
        else:
            first, past = any_model(ids[:, :5], use_cache=True, return_type="logits_and_cache")
            more = {"past_key_values": past, "attention_mask": torch.ones_like(ids)}
            steps = [first, any_model(ids[:, 5:], use_cache=True, return_type="logits_and_cache", **more)[0]]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-3, atol=1e-3)


def test_losses_follow_or_are_refused(model):
    ids = tokens()
    with sl.dola(model, relative_top=0).applied(model):
        if Lens.of(model).backend == "hooked":
            for kind in ("loss", "both"):
                with pytest.raises(sl.InputError, match=f"return_type '{kind}' is computed from unchanged logits"):
                    model(ids, return_type=kind)
            assert model(ids, return_type=None) is None
            assert model(ids, stop_at_layer=1).shape == (2, 9, 32)
        else:
            following = logits(model, ids).log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])
            torch.testing.assert_close(model(ids, return_type="loss"), -following.mean())


def test_a_pass_that_skips_candidates_is_refused(model):
    stream = torch.randn(1, 4, 32)
    with sl.dola(model).applied(model):
        if Lens.of(model).backend == "hooked" or hasattr(model, "_setup_start_at_layer"):
            with pytest.raises(sl.InputError, match=r"DoLa contrasts layers \[0, 1\]"):
                model(stream, start_at_layer=1)
        else:
            pytest.skip("this bridge cannot start at a layer")


def test_hugging_faces_own_generation_is_changed_too(load_tiny):
    model = load_tiny("llama", "bridge")
    options = {"max_new_tokens": 5, "do_sample": False, "return_type": "tokens"}
    with sl.dola(model).applied(model, strength=1.5):
        own = model.generate(tokens(1, 6), stop_at_eos=False, verbose=False, **options)
        found = model.hf_generate(tokens(1, 6), stop_at_eos=False, **options)
    assert torch.equal(found[:, : own.shape[1]], own[:, : found.shape[1]])


def test_a_row_does_not_depend_on_other_rows_or_on_padding(any_model):
    short, long = tokens(1, 5), tokens(1, 12, seed=1)
    padded = torch.cat([torch.nn.functional.pad(short, (0, 7), value=9), long])
    mask = torch.tensor([[1] * 5 + [0] * 7, [1] * 12])
    with sl.dola(any_model, relative_top=0).applied(any_model):
        together, alone = logits(any_model, padded, mask), logits(any_model, short)
    torch.testing.assert_close(together[:1, :5], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_their_dtype(dtype, load_tiny, backend):
    model = load_tiny("gemma2", backend, dtype)
    plain = logits(model, tokens())
    with sl.dola(model, relative_top=0).applied(model):
        found = logits(model, tokens())
    assert found.dtype == dtype
    assert torch.isfinite(found).all()
    assert not torch.equal(found, plain)


def test_layers_are_the_candidates_and_each_has_its_strength(model):
    ids, edit = tokens(), sl.dola(model, relative_top=0)
    with detour(model):
        final, early = layer_log_probs(model, ids)
        with edit.applied(model, layers=[1], strength=0.4):
            found = logits(model, ids)
        with edit.applied(model, strength={0: 0.0, 1: 0.4}):
            assert torch.equal(logits(model, ids), found)
        with edit.applied(model, strength={0: 2.0, 1: 0.5}):
            mixed = logits(model, ids)
    torch.testing.assert_close(found.double(), final - 0.4 * early[1], rtol=1e-4, atol=1e-4)
    alpha = torch.where(premature(final, early) == 0, 2.0, 0.5)[..., None]
    against = torch.where((premature(final, early) == 0)[..., None], early[0], early[1])
    torch.testing.assert_close(mixed.double(), final - alpha * against, rtol=1e-4, atol=1e-4)


def test_dola_is_measured_and_generates_like_any_edit(model):
    edit = sl.dola(model, relative_top=0)
    effect = sl.effect(model, edit, contrasts())
    assert effect.effect != 0
    for method in ("shapley", "leave_one_out", "only_one"):
        found = sl.layer_contributions(model, edit, contrasts(), method)
        assert found.effect == pytest.approx(effect.effect, abs=1e-6)
    assert sl.layer_contributions(model, edit, contrasts(), "shapley").closure_error < 1e-6
    with sl.dola(model).applied(model, strength=1.5):
        assert sl.generate(model, sentence(0, 4), max_new_tokens=4) != ""


def test_analyses_of_activations_refuse_dola(model):
    edit = sl.dola(model, relative_top=0)
    for analysis in (sl.layer_contributions, sl.position_contributions, sl.head_contributions):
        with pytest.raises(sl.InputError, match="needs an edit of activations, got DoLa, which acts on the logits"):
            analysis(model, edit, contrasts())
    with pytest.raises(sl.InputError, match="only a spectral edit has singular directions, got DoLa"):
        sl.direction_contributions(model, edit, contrasts())
    with pytest.raises(sl.InputError, match="expected 'logits'"):
        sl.layer_contributions(model, edit, contrasts(), "only_one", control=[fitted(model)])


def test_dola_refuses_what_it_cannot_do(model):
    with pytest.raises(sl.InputError, match=r"relative_top 1\.5 is outside 0 to 1"):
        sl.dola(model, relative_top=1.5)
    with pytest.raises(sl.InputError, match=r"unknown layers \[2\]: expected some of \[0, 1\]"):
        sl.dola(model, [2])
    edit = sl.dola(model)
    with pytest.raises(sl.InputError, match=r"cannot be scored: expected DoLa with relative_top=0"):
        sl.effect(model, edit, contrasts())
    with pytest.raises(sl.InputError, match="DoLa takes one number for each layer"):
        edit.install(model, strength=torch.ones(3))
    with pytest.raises(sl.InputError, match="unknown combine 'norm': expected one of contrast"):
        edit.install(model, combine="norm")
    with pytest.raises(sl.MismatchError, match="a model of 5 layers"):
        sl.DoLa((0,), 5).install(model)
    with Lens.of(model).hooks([("unembed.hook_out", lambda x: x + 1)]):  # noqa: SIM117
        with pytest.raises(sl.UnsupportedModelError, match="read out differs from the logits"):
            sl.dola(model)
