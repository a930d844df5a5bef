from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, N_LAYERS, fitted, tokens

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.models.sites import Site

pytestmark = pytest.mark.model
KEEPING_NORM = [combine for combine in sl.COMBINES if combine != "average"]
PROPERTY = settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def logits(model, ids):
    return Lens.of(model).forward(ids, torch.ones_like(ids)).detach()


@st.composite
def edits(draw):
    """What an edit can be: ranks, feature map, centring, site, strength, way to combine, layers."""
    return {
        "fit": {
            "rank": (draw(st.integers(0, 8)), draw(st.integers(0, 8))),
            "centre": draw(st.booleans()),
            "site": draw(st.sampled_from(sl.SITES)),
            "feature": draw(st.sampled_from(sorted(sl.FEATURE_MAPS))),
        },
        "apply": {
            "strength": draw(st.floats(-2, 2)),
            "combine": draw(st.sampled_from(sl.COMBINES)),
            "layers": draw(st.sampled_from(["all", "last-2", "first-1", "signature-2", [1]])),
        },
    }


@PROPERTY
@given(options=edits(), length=st.integers(4, 14), seed=st.integers(0, 99))
def test_an_edited_model_is_causal(any_model, options, length, seed):
    edit = fitted(any_model, **options["fit"])
    ids = tokens(1, length, seed)
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] - 3) % 60 + 4
    with edit.applied(any_model, **options["apply"]):
        first, second = logits(any_model, ids), logits(any_model, changed)
    assert torch.equal(first[:, :-1], second[:, :-1])
    assert not torch.equal(first[:, -1], second[:, -1])


@PROPERTY
@given(options=edits(), seed=st.integers(0, 99))
def test_a_row_does_not_depend_on_other_rows_or_on_padding(any_model, options, seed):
    edit, lens = fitted(any_model, **options["fit"]), Lens.of(any_model)
    short, long = tokens(1, 5, seed), tokens(1, 12, seed + 1)
    padded = torch.cat([torch.nn.functional.pad(short, (0, 7), value=9), long])
    mask = torch.tensor([[1] * 5 + [0] * 7, [1] * 12])
    with edit.applied(any_model, **options["apply"]):
        together = lens.forward(padded, mask)
        alone = logits(any_model, short)
    torch.testing.assert_close(together[:1, :5], alone, rtol=1e-3, atol=1e-4)


@PROPERTY
@given(options=edits(), seed=st.integers(0, 99))
def test_decoding_with_a_cache_gives_the_logits_of_one_pass(any_model, options, seed):
    edit, lens = fitted(any_model, **options["fit"]), Lens.of(any_model)
    ids = tokens(1, 6, seed)
    seen = []
    saving = lens.add_hook("ln_final.hook_normalized", lambda x: seen.append(x.detach()[:, -1]))
    try:
        with edit.applied(any_model, **options["apply"]):
            generated = any_model.generate(
                ids, max_new_tokens=5, do_sample=False, stop_at_eos=False, return_type="tokens", verbose=False
            )
            stepwise = torch.cat(seen)
            seen.clear()
            whole = []
            full = lens.add_hook("ln_final.hook_normalized", lambda x: whole.append(x.detach()[0]))
            logits(any_model, generated[:, :-1])
            full.remove()
    finally:
        saving.remove()
    assert len(stepwise) == 5
    torch.testing.assert_close(stepwise, whole[0][5:], rtol=1e-3, atol=1e-3)


@PROPERTY
@given(options=edits(), seed=st.integers(0, 99))
def test_norms_in_the_model_are_kept_and_everything_is_finite(any_model, options, seed):
    fit, apply = options["fit"], {**options["apply"], "strength": 1.0}
    edit, lens = fitted(any_model, **fit), Lens.of(any_model)
    layer = edit.choose_layers(apply["layers"])[0]
    name = Site.of(fit["site"]).point(lens, layer)
    seen = []
    before = lens.add_hook(name, lambda x: seen.append(x.detach()))
    with edit.applied(any_model, **apply):
        after = lens.add_hook(name, lambda x: seen.append(x.detach()))
        out = logits(any_model, tokens(2, 9, seed))
        after.remove()
    before.remove()
    assert torch.isfinite(out).all()
    if apply["combine"] != "average":
        torch.testing.assert_close(seen[1].norm(dim=-1), seen[0].norm(dim=-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("feature", sorted(sl.FEATURE_MAPS))
def test_half_precision_models_keep_their_dtype_and_stay_finite(dtype, family, feature, load_tiny, backend):
    model = load_tiny(family, backend, dtype)
    for site in sl.SITES:
        edit = fitted(model, site=site, feature=feature)
        with edit.applied(model):
            out = logits(model, tokens())
        assert out.dtype == dtype
        assert torch.isfinite(out).all()
        assert not torch.equal(out, logits(model, tokens()))


def test_after_a_context_the_model_is_bit_for_bit_what_it_was(any_model):
    ids = tokens(2, 12)
    before = logits(any_model, ids)
    edit = fitted(any_model)
    with edit.applied(any_model):
        assert not torch.equal(logits(any_model, ids), before)
    assert torch.equal(logits(any_model, ids), before)

    def fail():
        with edit.applied(any_model):
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert torch.equal(logits(any_model, ids), before)


@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
def test_handles_may_be_removed_out_of_order_and_twice(any_model):
    ids = tokens(2, 12)
    before = logits(any_model, ids)
    first, second = fitted(any_model), fitted(any_model, site="attn_out")
    alone = second.install(any_model)
    only_second = logits(any_model, ids)
    alone.remove()
    one = first.install(any_model)
    two = second.install(any_model)
    one.remove()
    assert torch.equal(logits(any_model, ids), only_second)
    one.remove()
    two.remove()
    assert torch.equal(logits(any_model, ids), before)


@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
def test_contexts_may_end_out_of_order(model):
    ids = tokens()
    before = logits(model, ids)
    outer, inner = fitted(model).applied(model), fitted(model, rank=(1, 4)).applied(model)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert not torch.equal(logits(model, ids), before)
    inner.__exit__(None, None, None)
    assert torch.equal(logits(model, ids), before)


@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
def test_a_users_own_hooks_survive_everything(any_model):
    calls = []
    name = "blocks.1.hook_mlp_out"
    any_model.hook_dict[name].add_hook(lambda x, hook: calls.append("kept"))
    try:
        edit = fitted(any_model)
        handle = edit.install(any_model)
        with edit.applied(any_model):
            logits(any_model, tokens())
        handle.remove()
        calls.clear()
        logits(any_model, tokens())
        assert calls == ["kept"]
    finally:
        any_model.hook_dict[name].remove_hooks(including_permanent=True)


def test_users_hooks_that_come_later_see_the_edited_activation(model):
    edit, seen = fitted(model), []
    name = "blocks.1.hook_mlp_out"
    with edit.applied(model, layers=[1]):
        _, cache = model.run_with_cache(tokens())
        model.run_with_hooks(tokens(), fwd_hooks=[(name, lambda x, hook: seen.append(x.detach().clone()))])
    _, plain = model.run_with_cache(tokens())
    torch.testing.assert_close(seen[0], edit(plain[name], 1))
    torch.testing.assert_close(cache[name], edit(plain[name], 1))


def test_fwd_hooks_do_what_applied_does(any_model):
    edit = fitted(any_model)
    options = {"layers": "last-2", "strength": 0.7, "combine": "negative_only"}
    found = any_model.run_with_hooks(tokens(), fwd_hooks=edit.fwd_hooks(any_model, **options), return_type="logits")
    with edit.applied(any_model, **options):
        expected = any_model(tokens(), return_type="logits")
    assert torch.equal(found, expected)
    assert not torch.equal(found, any_model(tokens(), return_type="logits"))


@pytest.mark.parametrize("site", sl.SITES)
def test_an_applied_edit_is_the_edit_called_on_the_activation(site, any_model):
    lens, edit = Lens.of(any_model), fitted(any_model, site=site, centre=True)
    name = Site.of(site).point(lens, 1)
    seen = []
    saving = lens.add_hook(name, lambda x: seen.append(x.detach().clone()))
    after = []
    with edit.applied(any_model, layers=[1]):
        saving_after = lens.add_hook(name, lambda x: after.append(x.detach().clone()))
        logits(any_model, tokens())
        saving_after.remove()
    saving.remove()
    assert torch.equal(after[0], edit(seen[0], 1))
    assert not torch.equal(after[0], seen[0])


@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
def test_one_strength_for_each_layer(model):
    edit, ids = fitted(model), tokens()
    with edit.applied(model, strength={0: 0.0, 1: 1.0, 2: 0.0}):
        found = logits(model, ids)
    with edit.applied(model, layers=[1]):
        torch.testing.assert_close(found, logits(model, ids))
    with pytest.raises(sl.InputError, match=r"strengths are given for layers \[0\], the chosen ones are \[0, 1, 2\]"):
        edit.install(model, strength={0: 1.0})


def test_an_edit_for_another_model_is_refused_and_leaves_nothing(model, load_tiny, backend):
    hooks = {name: len(point.fwd_hooks) for name, point in Lens.of(model).points.items()}
    for shape, message in (((8, 3, 16), "width"), ((8, 5, 32), r"layers \[3, 4\]")):
        x = torch.randn(*shape)
        with pytest.raises(sl.MismatchError, match=message):
            sl.fit_activations(x, x, x, rank=1).install(model)
    other = load_tiny("gemma", backend)
    with pytest.raises(sl.MismatchError, match="'z'"):
        fitted(model, site="z").install(other)
    edit = fitted(model)
    deeper = sl.SpectralEdit(
        edit.site,
        edit.subspaces,
        edit.feature,
        edit.options,
        edit.n,
        edit.signatures,
        {"model": {"n_layers": N_LAYERS + 1}},
    )
    with pytest.raises(sl.MismatchError, match="a model of 4 layers"):
        deeper.install(model)
    wrong: list[dict[str, Any]] = [{"layers": "last-9"}, {"layers": [7]}, {"combine": "sum"}]
    for options in wrong:
        with pytest.raises(sl.InputError):
            edit.install(model, **options)
    assert {name: len(point.fwd_hooks) for name, point in Lens.of(model).points.items()} == hooks


@pytest.mark.parametrize("family", FAMILIES)
def test_backends_agree_on_an_edited_model(family, load_tiny):
    pytest.importorskip("transformer_lens.HookedTransformer")
    hooked, bridge = (load_tiny(family, backend) for backend in ("hooked", "bridge"))
    for site in sl.SITES:
        edit = fitted(bridge, site=site)
        with edit.applied(hooked), edit.applied(bridge):
            torch.testing.assert_close(logits(hooked, tokens()), logits(bridge, tokens()), rtol=1e-3, atol=1e-4)


def test_gradients_flow_through_an_applied_edit(model):
    edit, lens = fitted(model), Lens.of(model)
    alpha = torch.tensor(0.6, requires_grad=True)

    def measure(strength):
        with edit.applied(model, layers=[0, 2], strength={0: strength, 2: 1.0}):
            return lens.forward(tokens(), torch.ones_like(tokens())).double().log_softmax(-1)[:, -1, 5].sum()

    (gradient,) = torch.autograd.grad(measure(alpha), alpha)
    step = 1e-2
    with torch.no_grad():
        difference = (measure(0.6 + step) - measure(0.6 - step)) / (2 * step)
    torch.testing.assert_close(gradient.double(), difference, rtol=2e-2, atol=1e-4)


def unwanted(*_: object, **__: object):
    raise AssertionError("asked again, or waited for, at every token")


@pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")
@pytest.mark.parametrize("site", sl.SITES)
@pytest.mark.parametrize("by_token", [False, True])
def test_a_hook_asks_nothing_again_that_was_settled_when_it_was_installed(site, by_token, model, monkeypatch):
    edit, ids = fitted(model, site=site), tokens(2, 7)
    units = () if site != "z" else (edit.shape[0],)
    strength: Any = torch.full((7, *units), 0.5) if by_token else 0.5
    with edit.applied(model, strength=0.5):
        wanted = logits(model, ids)
    where = edit.check(model, strength=strength)
    with edit.put(model, where):
        for name in ("check", "check_model", "check_strengths", "choose_layers", "choose_combine", "per_unit"):
            monkeypatch.setattr(sl.SpectralEdit, name, unwanted)
        monkeypatch.setattr("sea_lens.edits.activation.as_strength", unwanted)
        torch.testing.assert_close(logits(model, ids), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("combine", sl.COMBINES)
@pytest.mark.parametrize("site", ["mlp_out", "z"])
def test_no_value_of_a_strength_is_waited_for(site, combine, model, monkeypatch):
    edit, lens = fitted(model, site=site), Lens.of(model)
    width = edit.shape if site == "z" else edit.shape[1:]
    x = torch.randn(2, 5, *width, generator=torch.Generator().manual_seed(0))
    strength = torch.rand(5, 1) if site == "z" else torch.rand(5)
    functions = edit.functions(model, edit.check(model, strength=strength, combine=combine))
    wanted = [edit(x, layer, strength, combine) for layer in edit.layers]
    assert [name for name, _ in functions] == [Site.of(site).point(lens, layer) for layer in edit.layers]
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, unwanted)
    found = [function(x) for _, function in functions]
    monkeypatch.undo()
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert torch.equal(one, other)
