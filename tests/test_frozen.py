"""What passes through patterns, values, MLPs and the norm: against plain transformers, and in planted circuits."""

import pytest
import torch
from plain import Plain
from tiny import N_LAYERS, contrasts, fitted, save_tiny_model

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.models.tokens import encode
from sea_lens.testbed.planted import planted

pytestmark = pytest.mark.model
FAMILIES = ["gpt2", "llama", "qwen2", "pythia"]


def projections(plain, kinds):
    """The modules that give queries, keys or values, with the places of each in what they give; None for all of it."""
    found = []
    for layer in range(N_LAYERS):
        attention = plain.attention(layer)
        if plain.kind == "gpt2":
            found.append((attention.c_attn, kinds, lambda x: x.unflatten(-1, (3, -1)).movedim(-2, 0)))
        elif plain.kind == "gpt_neox":
            by_head = lambda x: x.unflatten(-1, (4, 3, -1)).movedim(-2, 0)  # noqa: E731
            found.append((attention.query_key_value, kinds, by_head))
        else:
            found += [(getattr(attention, f"{kind}_proj"), None, lambda x: x) for kind in kinds]
    return found


def held_in_plain(plain, ids, edit, held):
    """Logits of the edited run with a part held as in the unedited one."""

    def editing(at):
        return lambda _, __, out: edit(out, at)

    edits = [(plain.mlp(at), editing(at)) for at in range(N_LAYERS)]
    hooks = []

    def fixed(value, kinds=None, split=lambda x: x):
        def hook(_, __, out):
            if kinds is None:
                return value
            out = out.clone()
            for kind in kinds:
                split(out)["qkv".index(kind)][:] = split(value)["qkv".index(kind)]
            return out

        return hook

    if held in ("patterns", "values"):
        modules = projections(plain, "qk" if held == "patterns" else "v")
        _, saved = plain.run(ids, saved=[(i, module, "out") for i, (module, *_) in enumerate(modules)])
        hooks = [(module, fixed(saved[i], *how)) for i, (module, *how) in enumerate(modules)]
    if held in ("attention", "attention_and_mlps"):
        outputs = [plain.output(at) for at in range(N_LAYERS)]
        _, saved = plain.run(ids, saved=[(i, module, "out") for i, module in enumerate(outputs)])
        hooks += [(module, fixed(saved[i])) for i, module in enumerate(outputs)]
    if held in ("mlps", "attention_and_mlps"):
        mlps = [plain.mlp(at) for at in range(N_LAYERS)]
        _, saved = plain.run(ids, saved=[(i, module, "out") for i, module in enumerate(mlps)])
        hooks += [(module, fixed(saved[i])) for i, module in enumerate(mlps)]
    if held == "block_norms":
        norms = [norm for at in range(N_LAYERS) for norm in (plain.norm(at), plain.mlp_input(at))]
        _, saved = plain.run(ids, saved=[(i, module, "in") for i, module in enumerate(norms)])
        hooks += [(module, by_old_scale(module, saved[i])) for i, module in enumerate(norms)]
    return plain.run(ids, [*hooks, *edits])[0]


def by_old_scale(norm, old):
    """A hook that lets a norm divide by what it divided another input by."""
    centre = lambda x: x - x.mean(-1, keepdim=True) if isinstance(norm, torch.nn.LayerNorm) else x  # noqa: E731
    epsilon = norm.eps if isinstance(norm, torch.nn.LayerNorm) else norm.variance_epsilon
    scale = (centre(old).square().mean(-1, keepdim=True) + epsilon).sqrt()

    def hook(_, given, __):
        return centre(given[0]) / scale * norm.weight + (0 if getattr(norm, "bias", None) is None else norm.bias)

    return hook


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_lost_is_what_plain_transformers_lose(family, backend, tmp_path):
    folder = save_tiny_model(family, tmp_path)
    model = sl.load_model(str(folder), backend)
    edit, (one,) = fitted(model), contrasts(1)
    found = sl.frozen(model, edit, [one])
    plain = Plain(folder)

    def contrast(logits_of):
        values = []
        for text in (one.target, one.foil):
            # Token by token: the completion is scored behind the prompt's tokens.
            whole, prompt = encode(Lens.of(model), one.prompt + text), encode(Lens.of(model), one.prompt)
            ids = torch.tensor([list(whole)])
            log_probs = logits_of(ids).log_softmax(-1)[0]
            values.append(sum(log_probs[i - 1, ids[0, i]].item() for i in range(len(prompt), ids.shape[1])))
        return values[0] - values[1]

    edited = contrast(
        lambda ids: plain.run(ids, [(plain.mlp(at), lambda _, __, x, at=at: edit(x, at)) for at in range(N_LAYERS)])[0]
    )
    assert edited - contrast(lambda ids: plain.run(ids)[0]) == pytest.approx(found.effect, abs=1e-4)
    for held, value in zip(found.held, found.values.tolist(), strict=True):
        if held != "final_norm":
            left = contrast(lambda ids, held=held: held_in_plain(plain, ids, edit, held))
            assert value == pytest.approx(edited - left, abs=1e-4), held
    assert (found.left + found.values).tolist() == pytest.approx([found.effect] * len(found.held))


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("direct", {}),
        ("head", {"values": 1.0, "attention": 1.0, "attention_and_mlps": 1.0}),
        ("by_key", {"patterns": 1.0, "attention": 1.0, "attention_and_mlps": 1.0}),
        ("by_query", {"patterns": 1.0, "attention": 1.0, "attention_and_mlps": 1.0}),
        ("both_layers", {"mlps": 1.0, "attention_and_mlps": 1.0}),
        ("both_heads", {"values": 1.0, "attention": 1.0, "mlps": 1.0, "attention_and_mlps": 1.0}),
    ],
)
def test_planted_ways_are_lost_and_no_others(name, lost, backend):
    case = planted(name, backend)
    found = sl.frozen(case.model, case.edit, case.contrasts)
    for held, value in zip(found.held, found.values.tolist(), strict=True):
        assert value / found.effect == pytest.approx(lost.get(held, 0.0), abs=0.01), held


def test_a_real_norm_divides_the_effect_and_a_linear_one_does_not(backend):
    case = planted("final_norm", backend)
    model, lens = case.model, Lens.of(case.model)
    # Half of the edit: the stream at the answer is shorter, and the norm divides by less.
    found = sl.frozen(model, case.edit, case.contrasts, strength=0.5)
    scales = {}
    prompt = torch.tensor([list(encode(lens, case.contrasts[0].prompt))])
    for name, where in (("before", None), ("after", 0.5)):
        seen = []
        with torch.no_grad(), lens.hooks([("ln_final.hook_scale", lambda s, seen=seen: seen.append(s[0, -1, 0]))]):
            if where is None:
                model(prompt)
            else:
                with case.edit.applied(model, strength=where):
                    model(prompt)
        scales[name] = seen[-1].item()
    lost = dict(zip(found.held, found.values.tolist(), strict=True))["final_norm"]
    # The contrast is 0 before the edit, and goes as one over the scale.
    assert lost / found.effect == pytest.approx(1 - scales["after"] / scales["before"], abs=2e-3)
    assert abs(lost / found.effect) > 0.01
    linear = planted("head", backend)
    whole = sl.frozen(linear.model, linear.edit, linear.contrasts, strength=0.5)
    assert abs(dict(zip(whole.held, whole.values.tolist(), strict=True))["final_norm"] / whole.effect) < 1e-3


@pytest.mark.parametrize(("name", "method"), [("by_key", "pattern"), ("by_query", "pattern"), ("head", "value")])
def test_a_head_acts_by_its_pattern_or_by_its_values(name, method, backend):
    case = planted(name, backend)
    for one in ("pattern", "value"):
        found = sl.head_contributions(case.model, case.edit, case.contrasts, one)
        expected = torch.zeros_like(found.values)
        expected[2, 1] = found.effect if one == method else 0.0
        torch.testing.assert_close(found.values, expected, atol=0.01 * found.effect, rtol=0)


def test_patterns_and_values_are_those_of_mediation_of_the_whole_change(backend, tmp_path):
    model = sl.load_model(str(save_tiny_model("llama", tmp_path)), backend)
    edit, items = fitted(model), contrasts(2)
    whole = sl.mediation(model, edit, items, "exact", whole=True)
    for method, way in (("pattern", "qk"), ("value", "v")):
        found = sl.head_contributions(model, edit, items, method, control=[edit])
        torch.testing.assert_close(found.values, whole.heads(way, "all"))
        assert found.control_values is not None
        torch.testing.assert_close(found.control_values[0], found.values)
    estimate = sl.mediation(model, edit, items, whole=True, exact=0)
    both = estimate.heads("q", "all") + estimate.heads("k", "all")
    torch.testing.assert_close(estimate.heads("qk", "all"), both)


def test_frozen_is_told_as_table_and_figure(backend):
    case = planted("by_key", backend)
    found = sl.frozen(case.model, case.edit, case.contrasts, control=[case.edit])
    frame = found.to_frame()
    assert frame["held"].tolist() == list(found.held)
    assert (frame["left"] + frame["value"]).tolist() == pytest.approx([found.effect] * len(frame))
    assert "What is lost with a part held as it was" in " ".join(found.plot().get_title().split())
    with pytest.raises(sl.InputError, match="frozen needs an edit of activations"):
        sl.frozen(case.model, sl.dola(case.model), case.contrasts)
